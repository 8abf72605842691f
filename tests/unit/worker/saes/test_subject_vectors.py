"""Which activations an SAE is measured on: those asked for, then those of its training, then what its files state."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.sae_reading import TOKENS, config_of
from orchestrator.config.validation import parse
from orchestrator.errors import SubjectError
from tests.made_saes import facts
from worker.saes.subject_vectors import read_vectors

STATED = facts("topk")
NOWHERE = replace(STATED, subject=None, layers=(), site=None, hook_point=None)


def test_what_its_files_state_is_read_raw() -> None:
    config = config_of(STATED, {})
    assert (config.subject.model, config.subject.layer, config.subject.site) == (
        "openai-community/gpt2",
        3,
        "resid_post",
    )
    assert (config.data.context_length, config.data.prepend_bos, config.sae.normalize) == (128, False, "none")
    assert (config.training.heldout_tokens, config.data.max_tokens) == (TOKENS, 8 * TOKENS)
    by_hook = config_of(replace(STATED, site=None, hook_point="transformer.h.3.attn"), {})
    assert (by_hook.subject.hook, by_hook.subject.layer) == ("transformer.h.3.attn", None)


def test_what_is_asked_for_comes_first() -> None:
    asked = {"subject": "a", "layer": 1, "site": "mlp_delta", "data": "python:stdlib", "context": 64, "tokens": 4096}
    config = config_of(replace(STATED, site=None), asked)
    assert (config.subject.model, config.subject.layer, config.subject.hook) == ("a", 1, None)
    assert (config.subject.site, config.data.context_length, config.training.heldout_tokens) == ("mlp_delta", 64, 4096)
    assert config_of(STATED, {"hook": "h.5"}).subject.hook == "h.5"


@pytest.mark.parametrize("asked", [{}, {"subject": "a"}, {"subject": "a", "site": "resid_post"}, {"layer": 2}])
def test_no_place_is_made_up(asked: dict[str, object]) -> None:
    with pytest.raises(SubjectError, match="do not say of which model and place"):
        config_of(NOWHERE, asked)
    assert config_of(NOWHERE, {"subject": "a", "layer": 2}).subject.layer == 2


def test_several_layers_are_not_measured() -> None:
    with pytest.raises(SubjectError, match="several layers"):
        config_of(replace(STATED, layers=(1, 2)), {})
    every, one = (parse({"subject": {"layers": layers}}) for layers in ("all", [3]))
    with pytest.raises(SubjectError, match="several layers"):
        config_of(STATED, {}, every)
    for config in (config_of(STATED, {"layer": 3}, every), config_of(STATED, {}, one)):
        assert (config.subject.layer, config.subject.layers) == (3, None)
    assert config_of(replace(STATED, layers=(1, 2)), {"layer": 2}).subject.layer == 2


def test_a_jobs_text_is_its_own_until_another_is_asked_for() -> None:
    data = {"source": "org/set", "name": "part", "split": "test", "text_column": "body", "prepend_bos": True}
    trained = parse({"data": data | {"context_length": 32}, "training": {"heldout_tokens": 2048}})
    same = config_of(STATED, {}, trained)
    assert (same.data, same.subject, same.training.heldout_tokens) == (trained.data, trained.subject, 2048)
    other = config_of(STATED, {"data": "python:stdlib"}, trained).data
    assert (other.source, other.name, other.split, other.text_column) == ("python:stdlib", None, "train", "text")
    assert (other.prepend_bos, other.context_length) == (True, 32)


def test_a_distribution_is_read_without_a_model(tmp_path: Path) -> None:
    trained = parse({"subject": {"model": "synthetic:gaussian?d_model=8"}, "training": {"heldout_tokens": 64}})
    vectors = read_vectors(config_of(STATED, {}, trained), tmp_path, "cpu")
    assert (tuple(vectors.values.shape), vectors.text) == ((64, 8), trained.subject.model)
    assert list(tmp_path.iterdir()) == [], "no text is packed"
