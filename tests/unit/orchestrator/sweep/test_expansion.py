"""A sweep file becomes its configs: all of them, in order, each once, or one message that says where and why not."""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from orchestrator.sweep import check_name, check_paths, doubtful_ids, expand
from orchestrator.sweep.sweep import Limits, Sweep

settings.register_profile("orch", deadline=None, database=None)
settings.load_profile("orch")

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "s.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def ks(sweep: Sweep) -> list[int]:
    return [config.sae.k for config in sweep.configs]


def test_the_whole_form() -> None:
    write("sae: {n_latents: 512}\noptimizer.lr: 1e-3\n", "presets/small.yaml")
    text = """
version: 1
name: topk-width
base: presets/small.yaml
overrides: {training.max_tokens: 200e6, training: {dead_after_tokens: 1_000_000}}
sweep:
  - grid: {sae.k: [16, 32], sae.n_latents: {pow2: [8, 9]}}
  - zip: {optimizer.lr: {log: [1e-4, 1e-3, 3]}, optimizer.warmup_tokens: [500, 1000, 2000]}
  - list: [{training.seed: 1}, {training: {seed: 2}}]
exclude: ["sae.k == 32 and sae.n_latents == 256"]
limits: {max_parallel: 8, run_cap: 64}
labels: {project: scaling}
"""
    sweep = expand(write(text))
    assert (sweep.name, sweep.labels, sweep.text) == ("topk-width", {"project": "scaling"}, text)
    assert sweep.limits == Limits(max_parallel=8, run_cap=64, max_failures=3)
    found = [
        (c.sae.k, c.sae.n_latents, c.optimizer.lr, c.optimizer.warmup_tokens, c.training.seed) for c in sweep.configs
    ]
    pairs = [(1e-4, 500), (0.000316228, 1000), (1e-3, 2000)]
    sizes = [(16, 256), (16, 512), (32, 512)]
    assert found == [(*size, *pair, seed) for size, pair, seed in product(sizes, pairs, (1, 2))]
    assert {c.training.max_tokens for c in sweep.configs} == {200_000_000}
    assert {c.training.dead_after_tokens for c in sweep.configs} == {1_000_000}


@pytest.mark.parametrize("text", ["sae.k: 8", "sae: {k: 8}", "overrides: {sae.k: 8}", "base: {sae.k: 8}\nsweep:\n"])
def test_a_file_without_a_sweep_is_one_config(text: str) -> None:
    sweep = expand(write(text, "my file.yaml"))
    assert sweep.configs == (parse({"sae": {"k": 8}}),)
    assert (sweep.name, sweep.limits, sweep.labels) == ("my-file", Limits(), {})


def test_what_ships_expands() -> None:
    sweep = expand(ROOT / "examples" / "quickstart.yaml")
    assert sweep.name == "quickstart"
    assert 8 <= len(sweep.configs) <= 12


def test_bases_may_have_bases_and_the_nearest_word_counts() -> None:
    write("sae: {k: 1, n_latents: 64}\nstop.epsilon: 0.1", "a/deep.yaml")
    write("base: deep.yaml\noverrides: {sae.k: 2}", "a/middle.yaml")
    found = expand(write("base: a/middle.yaml\nstop.epsilon: 0.2\noverrides: {stop: {epsilon: 0.3}}")).configs[0]
    assert (found.sae.k, found.sae.n_latents, found.stop.epsilon) == (2, 64, 0.3)
    inline = expand(write("base: {base: a/middle.yaml, sae.n_latents: 32}")).configs[0]
    assert (inline.sae.k, inline.sae.n_latents) == (2, 32)


def test_a_circle_of_bases() -> None:
    write("base: ../s.yaml", "a/b.yaml")
    with pytest.raises(ConfigError, match=r"circle: s\.yaml -> b\.yaml -> s\.yaml"):
        expand(write("base: a/b.yaml"))


def test_paths_belong_to_the_file_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    write("x", "set [1]/texts/a.txt")
    write("{}", "set [1]/model/config.json")
    write("data.source: texts/*.txt", "set [1]/base.yaml")
    path = write(
        "base: base.yaml\nsubject.model: model\nsweep: [grid: {data.source: [texts/a.txt, org/set]}]", "set [1]/s.yaml"
    )
    one, two = expand(path).configs
    assert one.subject.model == str(Path("set [1]/model").resolve())
    assert [one.data.source, two.data.source] == [str(Path("set [1]/texts/a.txt").resolve()), "org/set"]
    pattern = expand(path, ["~data.source", "data.source=texts/*.txt"]).configs[0].data.source
    assert pattern == str(Path.cwd() / "set [[]1]" / "texts" / "*.txt")
    monkeypatch.chdir("set [1]/texts")
    assert expand(Path("../s.yaml"), ["data.source=a.txt"]).configs[0].data.source == str(Path("a.txt").resolve())


MESSAGES = [
    ("", "s.yaml: is empty"),
    ("- 1", "s.yaml:1:1: a sweep file must be a mapping"),
    ("version: 2", "s.yaml:1:10: version 2 is not known"),
    ("version: true", "s.yaml:1:10: version True is not known"),
    ("overides: {}", "s.yaml:1:1: unknown key 'overides'; did you mean 'overrides'"),
    ("overrides:\n  sae: {kk: 3}", "s.yaml:2:9: unknown key 'sae.kk'; did you mean 'sae.k'"),
    ("overrides: {limits: {run_cap: 3}}", "s.yaml:1:13: 'limits' is set in the sweep file itself"),
    ("sae: 3", "s.yaml:1:1: 'sae' is a group of keys"),
    ("sae.k: 1\nsae: {k: 2}", "s.yaml:2:7: 'sae.k' is written twice"),
    (
        "sweep: [grid: {optimizer.lr: {logspace: [1e-4, 1e-3, 3]}}]",
        "s.yaml:1:30: there is no range 'logspace'; ",
    ),
    ("optimizer.lr: {log: [1e-4, 1e-3, 3]}", "(?s)s.yaml:1:15: optimizer.lr: .*To vary it, write sweep: .grid"),
    ("subject.model: shipped:gpt2", "(?s)there is no 'shipped:gpt2'; there is 'shipped:stdlib-gpt2'"),
    ("data.source: python:stdlb", "there is no 'python:stdlb'; there is 'python:stdlib'"),
    ("sae:\n  k: big", "s.yaml:2:6: sae.k: Input should be a valid integer \\(got 'big'\\)"),
    ("sae.k: {pow2: [1, 2]}", "s.yaml:1:8: sae.k"),
    ("base: nothing.yaml", "s.yaml:1:7: base nothing.yaml: no such file"),
    ("base: [1]", "s.yaml:1:7: base must be"),
    ("base: {sweep: []}", "s.yaml:1:8: a base cannot hold 'sweep'"),
    ("sweep: {grid: {sae.k: [1]}}", "s.yaml:1:8: sweep must be a list"),
    ("sweep: [gird: {sae.k: [1]}]", "s.yaml:1:9: unknown block 'gird'"),
    ("sweep: [exclude: []]", "unknown block 'exclude'"),
    ("sweep: [3]", "s.yaml:1:9: a block has one of the words"),
    ("sweep: [grid: {}]", "the grid names no key"),
    ("sweep: [grid: {sae.k: []}]", "s.yaml:1:23: the list is empty"),
    ("sweep: [grid: {sae.k: 3}]", "s.yaml:1:23: a list of values or a range"),
    ("sweep: [grid: {sae.k: {pow3: [1, 2]}}]", "there is no range 'pow3'; did you mean 'pow2'"),
    ("sweep: [grid: {sae.k: {log: [0, 2, 3]}}]", "s.yaml:1:23: log: .* above 0"),
    ("sweep: [zip: {sae.k: [1, 2], training.seed: [1]}]", "differ in length: sae.k has 2, training.seed has 1"),
    ("sweep: [list: []]", "list needs one or more points"),
    ("sweep: [list: [3]]", "s.yaml:1:16: a point of a list must be a mapping"),
    ("sweep:\n- grid: {sae.k: [1]}\n- list: [{sae.k: 2}]", "s.yaml:3:18: 'sae.k' is varied twice"),
    ("sweep: [grid: {sae.k: [8, 8]}]", "points 1 and 2 are the same, a value is listed twice: point 2 \\(sae.k = 8\\)"),
    (
        "sweep: [list: [{sae.k: 32}, {training.seed: 0}]]",
        "point 1 \\(sae.k = 32\\) and point 2 \\(training.seed = 0\\) give",
    ),
    ("sweep: [grid: {optimizer.lr: [1, 1.0]}]", "point 1 .* and point 2 .* one and the same config"),
    (
        "sae.n_latents: 32\nsweep:\n- grid:\n    sae.k: [16, 64]\n    training.seed: [1]",
        "s.yaml:4:17: sae: k = 64 is above n_latents = 32.* at point 2 \\(sae.k = 64, training.seed = 1\\)",
    ),
    ("sweep: [grid: {sae.k: {range: [1, 1000, 1]}, training.seed: {range: [1, 1000, 1]}}]", "1000000 points"),
    ("exclude: [3]", "s.yaml:1:11: a rule of exclude is text"),
    ("exclude: ['sae.k = 1']", "s.yaml:1:11: 'sae.k = 1': invalid syntax"),
    ("exclude: sae.k > 1", "exclude leaves no point"),
    (
        "sweep: [grid: {sae.k: [1, 2]}]\nexclude: [sae.n_latents > 1]",
        "null is not a number.*, at point 1 \\(sae.k = 1\\)",
    ),
    ("sweep: [grid: {sae.k: [x]}]\nexclude: [sae.k > 1]", "s.yaml:1:24: sae.k: Input should be a valid integer"),
    ("limits: {runcap: 1}", "s.yaml:1:10: unknown limit 'runcap'; did you mean 'run_cap'"),
    ("optimizer.warmup_tokens: 30e6", "s.yaml:1:26: optimizer.warmup_tokens = 30000000 is longer than training.max_to"),
    (
        "training.max_tokens: 1e6\nsweep: [{grid: {optimizer.decay_tokens: [5, 2e6], sae.k: [8]}}]",
        "s.yaml:2:45: optimizer.decay_tokens = 2000000 is longer than training.max_tokens = 1000000.*, at point 2",
    ),
    ("optimizer.decay_tokens: 2e6\ntraining: {max_tokens: 1e6}", "s.yaml:.*decay_tokens = 2000000 is longer"),
    ("limits: {run_cap: 0}", "s.yaml:1:19: run_cap must be a whole number from 1"),
    ("limits: {max_failures: true}", "max_failures must be a whole number"),
    ("limits: {max_parallel: .nan}", "max_parallel must be a whole number"),
    ("limits: {max_parallel: 1e30}", "max_parallel must be a whole number"),
    ("sweep: [grid: {sae.k: [1, 2]}]\nlimits: {run_cap: 1}", "has 2 configs, run_cap allows 1"),
    ("labels: {a: 1}", "s.yaml:1:13: the label 'a' must be text"),
    ("labels: [a]", "labels must be a mapping"),
    ("name: [a]", "s.yaml:1:7: the name must be text"),
    ("name: a b", "s.yaml:1:7: 'a b' cannot name a sweep"),
]


@pytest.mark.parametrize(("text", "said"), MESSAGES, ids=range(len(MESSAGES)))
def test_messages_say_where_and_what(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        expand(write(text))
    assert caught.value.hint


def test_a_base_names_its_own_file() -> None:
    write("sae:\n  k: none", "b.yaml")
    with pytest.raises(ConfigError, match=r"^b\.yaml:2:6: sae\.k"):
        expand(write("base: b.yaml"))


def test_excluded_points_need_not_be_valid() -> None:
    assert ks(expand(write("sae.n_latents: 32\nsweep: [grid: {sae.k: [16, 64]}]\nexclude: sae.k > sae.n_latents"))) == [
        16
    ]


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "9a", "_", "x" * 64])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", ".a", "12", "é", "a\n", "x" * 65])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a sweep"):
        check_name(name)


@pytest.mark.parametrize("value", ["123", "-5", "1.5", "1e3"])
def test_a_number_as_name_needs_a_letter_and_is_not_told_to_be_put_in_quotes(value: str) -> None:
    with pytest.raises(ConfigError, match="the name must be text") as told:
        expand(write(f"name: {value}"))
    assert told.value.hint == "A name has a letter, as a number means a job: for example sweep-1"
    with pytest.raises(ConfigError, match="the name must be text") as told:
        expand(write("name: true"))
    assert told.value.hint == 'Put it in quotes: "..."'


def test_a_name_from_a_file_of_another_script() -> None:
    with pytest.raises(ConfigError, match="its file name makes none"):
        expand(write("sae.k: 3", "文.yaml"))


_AXES: dict[str, list[Any]] = {
    "sae.k": [1, 2, 4, 8],
    "training.seed": [0, 1, 2],
    "optimizer.lr": ["auto", 1e-4, 0.5],
    "sae.n_latents": [16, 64],
    "data.prepend_bos": [True, False],
}
_grids = st.fixed_dictionaries(
    {}, optional={key: st.lists(st.sampled_from(v), min_size=1, unique=True) for key, v in _AXES.items()}
)
_rules = st.sampled_from(
    [
        [],
        ["sae.k >= 4"],
        ["sae.k == 1 and training.seed != 0", "not data.prepend_bos"],
        ["optimizer.lr in ['auto', 0.5]"],
    ]
)


def _holds(rules: list[str], config: JobConfig) -> bool:
    known = {"sae": config.sae, "training": config.training, "data": config.data, "optimizer": config.optimizer}
    return any(eval(rule, known) for rule in rules)  # the rules above, and nobody else's


@given(grid=_grids, rules=_rules, split=st.integers(0, 5))
def test_expansion_is_the_ordered_product_without_what_is_excluded(
    grid: dict[str, list[Any]], rules: list[str], split: int
) -> None:
    keys = list(grid)
    blocks = [{"grid": {key: grid[key] for key in part}} for part in (keys[:split], keys[split:]) if part]
    every = []
    for values in product(*grid.values()):
        nested: dict[str, dict[str, Any]] = {}
        for key, value in zip(keys, values, strict=True):
            nested.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
        every.append(parse({**nested, "sae": {"k": 2, **nested.get("sae", {})}}))
    wanted = [config for config in every if not _holds(rules, config)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(yaml.safe_dump({"sae.k": 2, "sweep": blocks, "exclude": rules}, sort_keys=False))
        if not wanted:
            with pytest.raises(ConfigError, match="leaves no point"):
                expand(path)
            return
        sweep = expand(path)
        assert list(sweep.configs) == wanted
        assert len({config.config_id for config in sweep.configs}) == len(wanted)
        assert expand(path) == sweep


def test_a_missing_path_is_named_before_anything_is_queued(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("data: {source: ./none.txt}\n")
    with pytest.raises(ConfigError, match=r"data\.source: there is no \./none\.txt") as caught:
        check_paths(expand(file).configs)
    assert caught.value.hint
    (tmp_path / "none.txt").write_text("there")
    check_paths(expand(file).configs)
    file.write_text("subject: {model: some/id}\ndata: {source: some/dataset}\n")
    check_paths(expand(file).configs)


def test_a_text_that_cannot_be_read_is_told_of_by_what_it_is(tmp_path: Path) -> None:
    file, text = tmp_path / "s.yaml", tmp_path / "text"
    text.mkdir()
    (text / "notes.md").write_text("no text")
    for source, said in (
        ("text", r"text holds no \.txt, \.jsonl, \.parquet"),
        ("text/notes.md", "notes.md is no text"),
    ):
        file.write_text(f"data: {{source: {source}}}\n")
        with pytest.raises(ConfigError, match=said):
            check_paths(expand(file).configs)


def test_an_id_that_is_spelt_nearly_as_a_folder_there_is_doubtful(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-text").mkdir()
    (tmp_path / "model.txt").write_text("a file is no model")

    def doubts(model: str, source: str) -> list[str]:
        file.write_text(f"subject: {{model: {model}}}\ndata: {{source: {source}}}\n")
        return doubtful_ids(expand(file).configs, tmp_path)

    assert doubts("my-modle", "my-txt") == [
        "data.source: no file or folder my-txt is here, so a data set of the hub is meant; or my-text?",
        "subject.model: no file or folder my-modle is here, so a model of the hub is meant; or my-model?",
    ]
    assert doubts("my-model", "my-text") == []
    assert doubts("gpt2", "wikitext") == []
    assert doubts("org/my-modle", "org/my-txt") == []
