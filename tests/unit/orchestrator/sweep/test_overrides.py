"""Words typed behind the file win over it, in order, and typing them twice changes nothing."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError
from orchestrator.sweep import expand

settings.register_profile("files", deadline=None, database=None, max_examples=40)
settings.load_profile("files")

TEXT = """
sae: {k: 2, n_latents: 64}
training.seed: 7
sweep:
  - grid: {sae.k: [4, 8]}
  - zip: {optimizer.lr: [1e-4, 1e-3], optimizer.ema: [0.9, 0.99]}
  - list: [{stop.epsilon: 0.1}, {stop.epsilon: 0.2, stop.rule: max_tokens}]
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sweep") / "s.yaml"
    file.write_text(TEXT)
    return file


def rows(path: Path, *overrides: str) -> list[tuple[int, float | str, float, int]]:
    return [(c.sae.k, c.optimizer.lr, c.stop.epsilon, c.training.seed) for c in expand(path, overrides).configs]


def test_one_value_takes_the_key_out_of_its_block(path: Path) -> None:
    assert [k for k, *_ in rows(path)] == [4] * 4 + [8] * 4
    assert [k for k, *_ in rows(path, "sae.k=16")] == [16] * 4


def test_several_values_are_the_last_axis(path: Path) -> None:
    found = rows(path, "sae.k=1,3", "optimizer.lr=auto", "optimizer.ema=0", "~stop")
    assert found == [(1, "auto", 0.005, 7), (3, "auto", 0.005, 7)]
    assert [k for k, *_ in rows(path, "sae.k=1,3")] == [1, 3] * 4


def test_part_of_a_zip_or_a_list_may_be_taken_out(path: Path) -> None:
    assert len(rows(path, "optimizer.lr=0.5")) == 8
    assert {lr for _, lr, *_ in rows(path, "optimizer.lr=0.5")} == {0.5}
    assert [e for *_, e, _ in rows(path, "stop.epsilon=0.3")] == [0.3] * 8
    assert len(rows(path, "stop.epsilon=0.3", "stop.rule=plateau")) == 4


def test_tilde_gives_back_the_default(path: Path) -> None:
    assert {seed for *_, seed in rows(path, "~training.seed")} == {0}
    assert {k for k, *_ in rows(path, "~sae.k")} == {JobConfig().sae.k}
    assert {k for k, *_ in rows(path, "~sae")} == {JobConfig().sae.k}
    assert {seed for *_, seed in rows(path, "training.seed=3", "~training.seed")} == {0}
    assert {seed for *_, seed in rows(path, "~training.seed", "training.seed=3")} == {3}
    assert {seed for *_, seed in rows(path, "training.seed=3,4", "training.seed=5")} == {5}


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("optimizer.lr=log(1e-4,1e-3,3)", [1e-4, 0.000316228, 1e-3]),
        ("optimizer.lr={log: [1e-4, 1e-3, 2]}", [1e-4, 1e-3]),
        ("optimizer.lr=lin(0.1, 0.3, 3)", [0.1, 0.2, 0.3]),
        ("optimizer.lr=auto,1e-3", ["auto", 1e-3]),
        ("optimizer.lr=pow2(-2,-1),3", [0.25, 0.5, 3.0]),
        ("optimizer.lr=range(1,2,1)", [1.0, 2.0]),
        ("+optimizer.lr=0.5", [0.5]),
        ("++optimizer.lr = 0.5 , 0.25", [0.5, 0.25]),
        ("optimizer={lr: 0.5, clip_norm: 1}", [0.5]),
        ("data.source='a,b'", ["auto"]),
    ],
)
def test_forms(path: Path, override: str, values: list[float | str]) -> None:
    clean = ["~sae.k", "~optimizer", "~stop"]
    assert [lr for _, lr, *_ in rows(path, *clean, override)] == values


@pytest.mark.parametrize(
    ("override", "sources"),
    [
        ('data.source=\'a,b\',"c,\\"d"', ["a,b", 'c,"d']),
        ("data.source=*.txt", ["*.txt"]),
        ("data.source=it's,here's", ["it's", "here's"]),
        ("data.source=文/[a,b].txt", ["文/[a,b].txt"]),
        ("data.source='10'", ["10"]),
    ],
)
def test_texts(path: Path, override: str, sources: list[str]) -> None:
    found = expand(path, ["~sae.k", "~optimizer", "~stop", override]).configs
    assert [config.data.source for config in found] == sources


def test_a_value_that_is_itself_a_list(path: Path) -> None:
    found = expand(path, ["~sae.k", "~optimizer", "~stop", "optimizer.betas=[0.5,0.6],[0.7,0.8]"]).configs
    assert [config.optimizer.betas for config in found] == [(0.5, 0.6), (0.7, 0.8)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sae.k", "has no '='"),
        ("", "has no '='"),
        ("=3", "unknown key ''"),
        ("~", "unknown key ''"),
        ("sae.k=", "a value is missing"),
        ("sae.k=1,,2", "a value is missing"),
        ("sae.kk=3", "did you mean 'sae.k'"),
        ("~sae.kk", "did you mean 'sae.k'"),
        ("sae.kk=3,4", "did you mean 'sae.k'"),
        ("sae=3", "group of keys"),
        ("sae=1,2", "group of keys"),
        ("name=x", "set in the sweep file itself"),
        ("limits.run_cap=3", "set in the sweep file itself"),
        ("sae.k=1,1", "a value is listed twice"),
        ("sae.k=0", "greater than 0"),
        ("sae.k=128", "k = 128 is above n_latents = 64"),
        ("sae.k=log(1,2)", "takes 3 numbers"),
        ("sae.k=log(1,2,3", "valid integer"),
        ("optimizer.lr=logspace(1e-4, 1e-3, 3)", "there is no range 'logspace'; did you mean 'log'"),
        ("optimizer.lr={linspace: [1e-4, 1e-3, 3]}", "there is no range 'linspace'; did you mean 'lin'"),
        ("optimizer.lr={log: 3}", "its numbers in a list"),
        ("sae.k=[1", "while parsing"),
        ("sae.k=a: b: c", "mapping values"),
    ],
)
def test_messages_name_the_override(path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        expand(path, [override])
    assert caught.value.message.startswith(f"override {override!r}")
    assert caught.value.hint


_overrides = st.sampled_from(
    [
        "sae.k=16",
        "sae.k=1,3",
        "sae.k=pow2(1,3)",
        "~sae.k",
        "optimizer.lr=0.5",
        "~optimizer",
        "training.seed=1,2",
        "~stop",
    ]
)


@given(st.lists(_overrides, max_size=3), _overrides)
def test_an_override_twice_is_an_override_once(path: Path, before: list[str], override: str) -> None:
    assert expand(path, [*before, override, override]) == expand(path, [*before, override])


@given(st.text(max_size=30))
def test_any_text_is_taken_or_refused(path: Path, text: str) -> None:
    for override in (text, f"sae.k={text}", f"data.source={text}"):
        with suppress(ConfigError):
            assert expand(path, [override]).configs
