"""The trainer continues a curve on the same material or not at all."""

from typing import Any

import pytest

from orchestrator.errors import SubjectError
from worker.trainer.__main__ import _refuse_other_material


def _facts(model: str, text: str | None) -> dict[str, Any]:
    return {"subject": {"sha256": model}} | ({"tokens": {"id": text}} if text else {})


def test_the_same_model_and_text_may_go_on() -> None:
    _refuse_other_material(_facts("m", "t"), _facts("m", "t"))
    _refuse_other_material({}, _facts("m", "t"))


@pytest.mark.parametrize(("model", "text", "said"), [("n", "t", "the model is not"), ("m", "u", "the text is not")])
def test_another_model_or_text_is_refused(model: str, text: str, said: str) -> None:
    with pytest.raises(SubjectError, match=said) as caught:
        _refuse_other_material(_facts("m", "t"), _facts(model, text))
    assert caught.value.hint


def test_a_synthetic_subject_has_no_text_and_goes_on_as_itself() -> None:
    _refuse_other_material(_facts("m", None), _facts("m", None))
    with pytest.raises(SubjectError, match="the model is not"):
        _refuse_other_material(_facts("m", None), _facts("n", None))
