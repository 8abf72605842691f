"""Stored configs: reconstructed where they were validated before, validated where somebody has changed them."""

import json
from typing import Any

import pytest

from orchestrator.config import job
from orchestrator.config.job import JobConfig, OptimizerConfig, SaeConfig, canonical_text, text_id
from orchestrator.config.validation import parse, read_stored
from orchestrator.errors import ConfigError

CONFIG = parse(
    {"sae": {"n_latents": 64, "k": 4}, "optimizer": {"lr": 0.1, "betas": [0.5, 0.75]}, "data": {"name": "é"}}
)


def without(*keys: str) -> str:
    """Return the text that an earlier version stored, which knew some fields less."""
    values = CONFIG.model_dump(mode="json")
    for key in keys:
        part, _, name = key.partition(".")
        if name:
            del values[part][name]
        else:
            del values[part]
    return canonical_text(values)


def changed(part: str, **values: Any) -> str:
    stored = json.loads(CONFIG.canonical_json())
    return canonical_text(stored | {part: stored[part] | values})


def test_it_comes_out_as_it_went_in() -> None:
    found = read_stored(CONFIG.canonical_json(), CONFIG.config_id)
    assert found == CONFIG
    assert (hash(found), repr(found)) == (hash(CONFIG), repr(CONFIG))
    assert type(found.sae) is SaeConfig
    assert found.optimizer.betas == (0.5, 0.75)
    assert found.canonical_json() == CONFIG.canonical_json()
    assert found.stream_key == CONFIG.stream_key


def test_it_is_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that became stricter since, as k ≥ 1 might have, does not refuse what was accepted."""
    text = changed("sae", k=0)
    monkeypatch.setattr(JobConfig, "model_validate", None)
    assert read_stored(text, text_id(text)).sae.k == 0


def test_a_field_that_came_later_has_its_default_and_the_id_stays() -> None:
    text = without("optimizer.ema", "training.encode_dtype", "stop")
    found = read_stored(text, text_id(text))
    assert found == CONFIG.model_copy(update={"optimizer": found.optimizer})
    assert found.optimizer == CONFIG.optimizer.model_copy(update={"ema": OptimizerConfig().ema})
    assert found.config_id == text_id(text) != CONFIG.config_id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("sae", k=0), r"sae\.k"),
        (changed("sae", n_latent=1), "did you mean 'sae.n_latents'"),
        ('{"from": "the future"}', "unknown key 'from'"),
        ('{"sae": 3}', "sae"),
        ("[]", "dictionary"),
        ("{", "not JSON"),
    ],
)
def test_a_text_that_was_edited_is_validated(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_stored(text, CONFIG.config_id)


def test_an_edited_text_that_is_valid_has_an_id_of_its_own() -> None:
    found = read_stored(changed("sae", k=8), CONFIG.config_id)
    assert found == CONFIG.model_copy(update={"sae": SaeConfig(n_latents=64, k=8)})
    assert found.config_id == found.model_copy().config_id != CONFIG.config_id


def test_a_key_that_this_version_does_not_know_is_refused_whatever_its_id() -> None:
    text = changed("sae", gates=3)
    with pytest.raises(ConfigError, match=r"sae\.gates"):
        read_stored(text, text_id(text))


def test_an_id_is_computed_once_and_a_copy_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(text: str) -> str:
        calls.append(text)
        return text_id(text)

    monkeypatch.setattr(job, "text_id", count)
    config = parse({"sae": {"k": 4}})
    first = config.config_id
    assert config.config_id == first
    assert len(calls) == 1
    other = config.model_copy(update={"sae": SaeConfig(k=5)})
    assert other.config_id != first
    assert other.config_id == parse({"sae": {"k": 5}}).config_id


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("sae", {"activation": "gated"}, "sae.activation"),
        ("subject", {"site": "attn_z"}, "subject.site"),
        ("stop", {"rule": "never"}, "stop.rule"),
        ("data", {"special_tokens": "keep"}, "data.special_tokens"),
        ("subject", {"model": "synthetic:cauchy?d_model=8"}, "subject.model"),
    ],
)
def test_a_choice_of_a_later_version_is_refused(part: str, values: dict[str, Any], says: str) -> None:
    """Its hash is right: a later version validated it. This one cannot train it."""
    text = changed(part, **values)
    with pytest.raises(ConfigError, match=says):
        read_stored(text, text_id(text))
