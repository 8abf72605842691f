"""The trainer continues a curve on the same material or not at all."""

import pytest

from orchestrator.errors import SubjectError
from worker.trainer import _refuse_other_material

BEFORE = {"subject": {"sha256": "m"}, "tokens": {"id": "t"}}


def test_the_same_model_and_text_may_go_on() -> None:
    _refuse_other_material(BEFORE, "m", "t")
    _refuse_other_material({}, "m", "t")


@pytest.mark.parametrize(("model", "text", "said"), [("n", "t", "the model is not"), ("m", "u", "the text is not")])
def test_another_model_or_text_is_refused(model: str, text: str, said: str) -> None:
    with pytest.raises(SubjectError, match=said) as caught:
        _refuse_other_material(BEFORE, model, text)
    assert caught.value.hint
