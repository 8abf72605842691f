"""A curve is continued, and an SAE measured, on the model and text it was trained on or not at all."""

from typing import Any

import pytest

from orchestrator.errors import SubjectError
from worker.activations import source


def refuse_other_source(before: dict[str, Any], here: dict[str, Any]) -> None:
    source.refuse_other_source(before, here, whose="this job began with", otherwise="Or start over.")


def _facts(model: str, text: str | None) -> dict[str, Any]:
    return {"subject": {"sha256": model}} | ({"tokens": {"id": text}} if text else {})


def test_the_same_model_and_text_may_go_on() -> None:
    refuse_other_source(_facts("m", "t"), _facts("m", "t"))
    refuse_other_source({}, _facts("m", "t"))


@pytest.mark.parametrize(("model", "text", "said"), [("n", "t", "the model is not"), ("m", "u", "the text is not")])
def test_another_model_or_text_is_refused(model: str, text: str, said: str) -> None:
    with pytest.raises(SubjectError, match=said) as caught:
        refuse_other_source(_facts("m", "t"), _facts(model, text))
    assert caught.value.hint


def test_a_synthetic_subject_has_no_text_and_goes_on_as_itself() -> None:
    refuse_other_source(_facts("m", None), _facts("m", None))
    with pytest.raises(SubjectError, match="the model is not"):
        refuse_other_source(_facts("m", None), _facts("n", None))
