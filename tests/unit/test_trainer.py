"""The trainer continues a curve on the same material or not at all."""

from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.errors import SubjectError
from worker.trainer import Material, _refuse_other_material


def _material(model: str, text: str) -> Material:
    found = SimpleNamespace(subject=SimpleNamespace(fingerprint=model), tokens=SimpleNamespace(id=text))
    return cast(Material, found)


def test_the_same_model_and_text_may_go_on() -> None:
    _refuse_other_material({"subject": {"sha256": "m"}, "tokens": {"id": "t"}}, _material("m", "t"))


@pytest.mark.parametrize(("model", "text", "said"), [("n", "t", "the model is not"), ("m", "u", "the text is not")])
def test_another_model_or_text_is_refused(model: str, text: str, said: str) -> None:
    with pytest.raises(SubjectError, match=said) as caught:
        _refuse_other_material({"subject": {"sha256": "m"}, "tokens": {"id": "t"}}, _material(model, text))
    assert caught.value.hint
