"""A config is valid or refused, and its identity is its content."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.config.flat_keys import LATER_FIELDS
from orchestrator.config.job import JobConfig, SaeConfig
from orchestrator.config.validation import field_paths, near_key, parse
from orchestrator.errors import ConfigError

settings.register_profile("orch", deadline=None, database=None)
settings.load_profile("orch")


def nested(key: str, value: Any) -> dict[str, Any]:
    part, _, leaf = key.partition(".")
    return {part: {leaf: value}}


def test_the_defaults_are_a_config() -> None:
    assert parse({}) == JobConfig()


def test_config_id_is_the_same_in_every_process() -> None:
    code = "from orchestrator.config.job import JobConfig; print(JobConfig().config_id)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == JobConfig().config_id
    assert len(found) == 64


def test_canonical_json_is_sorted_whole_and_reads_back() -> None:
    config = parse({"data": {"source": "Büchér/文.txt"}, "optimizer": {"lr": 1e-4}})
    text = config.canonical_json()
    values = json.loads(text)
    assert text == json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert sorted(f"{part}.{key}" for part, found in values.items() for key in found) == sorted(
        {*field_paths()} - {*LATER_FIELDS}
    )
    assert parse(values) == config
    assert parse(values).config_id == config.config_id


@pytest.mark.parametrize(
    ("training", "k", "expected"),
    [
        ({"dead_after_tokens": 7}, 8, 7),
        ({"max_tokens": 2**40}, 8, 10_000_000),
        ({"max_tokens": 8_000_000}, 8, 1_000_000),
        ({"max_tokens": 655_360}, 8, 81_920),
        ({"max_tokens": 655_360}, 2, 81_920),
        ({"max_tokens": 65_536}, 2, 51_200),
        ({"max_tokens": 65_536}, 1, 102_400),
    ],
)
def test_the_window_of_dead_latents_follows_the_budget(training: dict[str, Any], k: int, expected: int) -> None:
    """An eighth of the budget, the paper's at most, 100 · n / k at least; above the budget no latent is ever dead."""
    found = parse({"sae": {"n_latents": 1024, "k": k}, "training": training}).dead_after_tokens(d_model=64)
    assert found == expected


@pytest.mark.parametrize(
    "lengths",
    [{"warmup_tokens": 20_000_000}, {"decay_tokens": 1_000_001}, {"warmup_tokens": 600_000, "decay_tokens": 500_000}],
)
def test_a_schedule_longer_than_the_budget_is_refused(lengths: dict[str, int]) -> None:
    whole = {"optimizer": lengths, "training": {"max_tokens": 1_000_000}}
    with pytest.raises(ConfigError, match=r"optimizer\.\w+ = \d+.* longer than training.max_tokens = 1000000"):
        parse(whole)
    assert parse(whole | {"training": {"max_tokens": sum(lengths.values())}})


@pytest.mark.parametrize("key", field_paths())
def test_writing_a_default_out_changes_no_identity(key: str) -> None:
    part, _, leaf = key.partition(".")
    default = JobConfig().model_dump(mode="json")[part][leaf]
    assert parse(nested(key, default)).config_id == JobConfig().config_id


def test_every_field_counts_in_the_identity() -> None:
    changed = {
        "subject.hook": "transformer.h.1",
        "data.prepend_bos": True,
        "sae.k": 31,
        "optimizer.ema": 0.99,
        "training.seed": 1,
        "stop.rule": "max_tokens",
    }
    ids = {parse(nested(key, value)).config_id for key, value in changed.items()}
    assert len(ids | {JobConfig().config_id}) == len(changed) + 1


@pytest.mark.parametrize("key", ["sae.k", "training.max_tokens", "training.seed", "data.max_tokens", "sae.n_latents"])
def test_whole_floats_become_integers(key: str) -> None:
    part, _, leaf = key.partition(".")
    found = getattr(getattr(parse(nested(key, 2e6 if leaf != "k" else 16.0)), part), leaf)
    assert type(found) is int


def test_several_layers_are_a_place_of_their_own_and_share_the_stream_of_single_ones() -> None:
    unset = parse({})
    assert '"layers"' not in unset.canonical_json()
    configs = [parse({"subject": subject}) for subject in ({"layers": "all"}, {"layers": [0, 2]}, {"layer": 2})]
    assert len({config.config_id for config in [unset, *configs]}) == 4
    assert {config.stream_key for config in configs} == {unset.stream_key}
    assert parse({"subject": {"layers": [2, 0]}}).config_id == configs[1].config_id
    assert [place.layer for place in configs[0].subject.places(3)] == [0, 1, 2]
    assert configs[1].subject.places(6) == tuple(parse({"subject": {"layer": i}}).subject for i in (0, 2))
    for other in ({"layer": 1}, {"hook": "transformer.h.1"}):
        with pytest.raises(ConfigError, match="and layers both name a place"):
            parse({"subject": {"layers": "all", **other}})


@given(st.integers(min_value=1, max_value=2**53))
def test_a_number_of_tokens_has_one_identity(tokens: int) -> None:
    whole, real = parse(nested("data.max_tokens", tokens)), parse(nested("data.max_tokens", float(tokens)))
    assert whole.config_id == real.config_id


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sae.k", 16.5, "valid integer"),
        ("sae.k", 0, "greater than 0"),
        ("sae.k", True, "valid integer"),
        ("sae.k", "16", "valid integer"),
        ("sae.k", None, "valid integer"),
        ("sae.k", float("nan"), "valid integer"),
        ("training.seed", -1, "greater than or equal to 0"),
        ("training.seed", 10**30, "less than or equal to"),
        ("optimizer.lr", "fast", "valid number or 'auto'"),
        ("optimizer.lr", 0, "greater than 0"),
        ("optimizer.lr", float("nan"), "finite"),
        ("optimizer.eps", True, "valid number"),
        ("optimizer.betas", 0.9, "tuple"),
        ("optimizer.betas", [0.9, 1], "less than 1"),
        ("optimizer.betas", [0.9, 0.99, 0.999], "at most 2"),
        ("optimizer.ema", 1, "less than 1"),
        ("sae.aux_coef", -0.1, "greater than or equal to 0"),
        ("stop.epsilon", float("inf"), "finite"),
        ("sae.activation", "topkk", "'topk'"),
        ("data.source", "", "at least 1 character"),
        ("data.source", "a\0b", "NUL"),
        ("data.source", "\ud800", "string"),
        ("data.context_length", 0, "greater than 0"),
        ("subject.layers", 3, "all, or a list of blocks counted from 0"),
        ("subject.layers", "every", "all, or a list"),
        ("subject.layers", [0, -1], "all, or a list"),
        ("subject.layers", [0, True], "all, or a list"),
        ("subject.layers", [], "names no layer"),
        ("subject.layers", [2, 0, 2], "names layer 2 twice"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(nested(key, value))
    assert key in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sae": {"n_latents": 16, "k": 32}}, "k = 32 is above n_latents = 16"),
        ({"sae": {"n_latents": 64, "expansion": 4}}, "give one of them"),
        ({"subject": {"hook": "a.b", "layer": 3}}, "give one of them"),
        ({"training": {"batch_tokens": 1000}}, "not a whole number of batches of 1000"),
        ({"training": {"max_tokens": 100}}, "less than one batch"),
        ({"sae": 3}, "sae"),
        ({"sae": {"kk": 3}}, "did you mean 'sae.k'"),
        ({"optimizer": {"learning_rate": 3}}, "unknown key 'optimizer.learning_rate'"),
        ({"saee": {}}, "did you mean 'sae'"),
        ({"qqqq": {}}, "unknown key 'qqqq'"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(values)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        JobConfig().sae.__setattr__("k", 3)


@pytest.mark.parametrize(
    ("values", "d_model", "n_latents", "k_aux"),
    [
        ({}, 128, 1024, 64),
        ({"expansion": 4}, 768, 3072, 256),
        ({"n_latents": 100}, 1, 100, 1),
        ({"k_aux": 7}, 96, 768, 7),
        ({}, 96, 768, 32),
    ],
)
def test_sizes_follow_the_width(values: dict[str, int], d_model: int, n_latents: int, k_aux: int) -> None:
    sae = SaeConfig(**values)
    assert sae.latents(d_model) == n_latents
    assert sae.aux_latents(d_model) == k_aux


@pytest.mark.parametrize(
    ("key", "meant"),
    [("k", "sae.k"), ("lr", "optimizer.lr"), ("sae.n_latent", "sae.n_latents"), ("train.seed", "training.seed")],
)
def test_near_key(key: str, meant: str) -> None:
    assert near_key(key, field_paths()) == meant
    assert near_key("zzzzzz", field_paths()) is None


def test_the_schema_describes_every_field() -> None:
    schema = JobConfig.model_json_schema()
    assert {key.partition(".")[0] for key in field_paths()} == set(schema["properties"])
    assert schema["$defs"]["SaeConfig"]["properties"]["k"]["description"]


def test_k_above_the_latents_that_an_expansion_gives_is_refused() -> None:
    assert SaeConfig(expansion=2, k=8).latents(4) == 8
    with pytest.raises(ConfigError, match=r"sae\.k = 8 is above the 6 latents of 2 × d_model 3"):
        SaeConfig(expansion=2, k=8).latents(3)


def test_a_target_l0_is_k_and_leaves_the_weight_of_the_penalty_open() -> None:
    sae = parse({"sae": {"activation": "relu", "target_l0": 16}}).sae
    assert (sae.k, sae.sparsity_coef) == (16, "auto")
    assert parse(json.loads(parse({"sae": sae.model_dump()}).canonical_json())).sae == sae


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target_l0": 16}, "target_l0 is for relu and jumprelu: the L0 of topk is its k"),
        ({"activation": "batchtopk", "target_l0": 16}, "the L0 of batchtopk is its k"),
        ({"activation": "relu", "target_l0": 16, "sparsity_coef": 1e-3}, "both set the sparsity: give one of them"),
        ({"activation": "relu", "target_l0": 16, "k": 32}, "k = 32 is not target_l0 = 16: leave k out"),
        ({"activation": "relu", "sparsity_coef": "auto"}, "give target_l0"),
        ({"activation": "relu", "target_l0": 0}, r"sae\.target_l0"),
        ({"activation": "relu", "target_l0": 65, "n_latents": 64}, "k = 65 is above n_latents = 64"),
    ],
)
def test_a_target_l0_that_cannot_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"sae": values})


def test_a_config_without_a_target_keeps_the_id_it_had_before_there_were_any() -> None:
    relu = parse({"sae": {"activation": "relu", "sparsity_coef": 0.01}})
    assert JobConfig().config_id == "2884ac3a72a25c9818dd488cd8bbee337d4fd59bb47d8bb15998b95208e1e3ed"
    assert relu.config_id == "6799b44c4c2fb4a3489b721ffeb17dd25e21797131b1451dddaaa0619c1f73e7"
