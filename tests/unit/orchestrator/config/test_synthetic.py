"""A synthetic subject's word: what it means, its one spelling, and what is refused."""

from typing import Any

import pytest

from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import Gaussian, Planted, Synthetic, canonical, fingerprint, is_synthetic, spelled
from orchestrator.config.synthetic import parse as parse_word
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from orchestrator.estimates.flops import estimate, hook_width
from orchestrator.estimates.memory import trainer_bytes

PLANTED = "synthetic:planted?d_model=64&latents=1024&k=8&exponent=1.0&noise=0.01&seed=0"


def config(model: str, **parts: dict[str, Any]) -> JobConfig:
    return parse(parts | {"subject": {"model": model} | parts.get("subject", {})})


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("synthetic:gaussian", Gaussian()),
        ("synthetic:gaussian?d_model=768", Gaussian(d_model=768)),
        ("synthetic:gaussian?seed=7&d_model=2", Gaussian(d_model=2, seed=7)),
        ("synthetic:planted", Planted()),
        (PLANTED, Planted(d_model=64, latents=1024, k=8, exponent=1.0, noise=0.01, seed=0)),
        ("synthetic:planted?noise=-0&exponent=2e0", Planted(noise=0.0, exponent=2.0)),
    ],
)
def test_a_word_is_read_and_spelled_in_one_way(word: str, means: Synthetic) -> None:
    assert parse_word(word) == means
    assert parse_word(spelled(means)) == means
    assert canonical(word) == spelled(means) == canonical(canonical(word))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("synthetic:gausian", "no synthetic subject 'gausian'; did you mean 'gaussian'?"),
        ("synthetic:", "no synthetic subject ''; there are: gaussian, planted"),
        ("synthetic:gaussian?k=4", "synthetic:gaussian has no parameter 'k'; there are: d_model, seed"),
        ("synthetic:planted?latent=4", "no parameter 'latent'; did you mean 'latents'?"),
        ("synthetic:gaussian?d_model=1", "d_model = '1': must be a whole number from 2 to 65,536"),
        ("synthetic:gaussian?d_model=64.0", "d_model = '64.0': must be a whole number"),
        ("synthetic:gaussian?d_model=", "d_model = '': must be a whole number"),
        ("synthetic:gaussian?d_model", "d_model = '': must be a whole number"),
        ("synthetic:gaussian?seed=-1", "seed = '-1': must be a whole number from 0"),
        ("synthetic:planted?exponent=nan", "exponent = 'nan': must be a number from 0 to 16"),
        ("synthetic:planted?noise=inf", "noise = 'inf': must be a number from 0 to 1,024"),
        ("synthetic:gaussian?seed=1&seed=2", "seed is given twice"),
        ("synthetic:gaussian?seed=1&", "no parameter ''"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(word)
    assert caught.value.message.startswith("subject.model: ")
    assert said in caught.value.message
    assert repr(word) in caught.value.message


def test_two_spellings_are_one_config() -> None:
    one, other = (config(word) for word in ("synthetic:gaussian?seed=0&d_model=64", "synthetic:gaussian"))
    assert one.subject.model == "synthetic:gaussian?d_model=64&seed=0"
    assert (one.config_id, one.stream_key) == (other.config_id, other.stream_key)
    assert one.config_id != config("synthetic:gaussian?seed=1").config_id


def test_a_language_models_name_stays_as_it_is() -> None:
    for model in (JobConfig().subject.model, "openai-community/gpt2", "synthetic", "./synthetic:gaussian"):
        assert canonical(model) == model
        assert not is_synthetic(model)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("subject", "layer", 3), ("subject", "hook", "transformer.h.1"), ("subject", "site", "mlp_post"),
        ("subject", "dtype", "bfloat16"), ("subject", "revision", "main"),
        ("data", "source", "text.txt"), ("data", "context_length", 64), ("data", "max_tokens", 1000),
        ("data", "activations", "cache"),
    ],
)  # fmt: skip
def test_what_it_does_not_heed_cannot_be_set(part: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{part}\.{key} means nothing to synthetic:gaussian") as caught:
        config("synthetic:gaussian", **{part: {key: value}})
    assert f"leave {key} out" in caught.value.message


def test_what_it_heeds_can_be_set() -> None:
    found = config("synthetic:gaussian", data={"seed": 3, "split": "train"}, sae={"normalize": "none"})
    assert found.data.seed == 3


def test_its_cost_and_memory_are_known_before_it_runs() -> None:
    gaussian, planted = config("synthetic:gaussian?d_model=96"), config("synthetic:planted?d_model=96&latents=100000")
    assert hook_width(gaussian.subject) == 96
    cost = estimate(gaussian, hook_width(gaussian.subject))
    assert (cost.d_model, cost.n_latents) == (96, 768)
    assert cost.flops_executed
    assert trainer_bytes([planted]) - trainer_bytes([gaussian]) == 4 * 96 * 100_000
    assert trainer_bytes([gaussian]) < 1 << 30


def test_its_fingerprint_is_its_words() -> None:
    words = ["synthetic:gaussian", "synthetic:gaussian?seed=1", "synthetic:planted", "synthetic:planted?k=4"]
    assert len({fingerprint(parse_word(word)) for word in words}) == len(words)
    assert fingerprint(Gaussian()) == fingerprint(parse_word("synthetic:gaussian?d_model=64&seed=0"))
