"""Where an SAE is measured: at the layers it is of, or at those that are asked for."""

from typing import Any

import pytest

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationPlan
from orchestrator.config.evaluation.of_sae import evaluation_of
from orchestrator.config.job import SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from orchestrator.errors import SubjectError

SEVERAL: dict[str, Any] = {"layers": (1, 2), "site": "resid_post"}


def facts_of(**facts: Any) -> SaeFacts:
    known: dict[str, Any] = {
        "selection": "topk", "k": 4, "d_model": 16, "n_latents": 64, "normalize": "none", "subtracts_bias": True,
        "dtype": "float32", "subject": "org/model",
    }  # fmt: skip
    return SaeFacts(**known | facts)


def place(plan: EvaluationPlan, **facts: Any) -> SubjectConfig:
    return evaluation_of(plan, EvaluatedSaeRef(id=1), facts_of(**facts), None).subject


def test_an_sae_is_measured_where_it_was_trained_or_where_it_is_asked_for() -> None:
    assert place(EvaluationPlan(), **SEVERAL).layers == (1, 2)
    assert place(EvaluationPlan(), layers=(3,), site="mlp_post").layer == 3
    across = place(EvaluationPlan(at_layers="all"), layers=(3,), site="mlp_post")
    assert (across.layer, across.layers, across.site) == (None, "all", "mlp_post")
    one = place(EvaluationPlan(at_layers=(5,)), **SEVERAL)
    assert (one.layer, one.layers) == (5, None)
    trained = parse({"subject": {"layers": "all"}})
    assert evaluation_of(EvaluationPlan(), EvaluatedSaeRef(id=1), facts_of(**SEVERAL), trained).subject.layers == "all"


def test_what_has_no_layers_is_refused() -> None:
    across = EvaluationPlan(at_layers="all")
    with pytest.raises(SubjectError, match=r"reads the module h.1.mlp: at_layers is for SAEs of a site"):
        place(across, hook_point="h.1.mlp")
    trained = parse({"subject": {"model": "synthetic:gaussian?d_model=8"}})
    with pytest.raises(SubjectError, match=r"synthetic:gaussian\S+ has no layers"):
        evaluation_of(across, EvaluatedSaeRef(id=1), facts_of(), trained)


def test_a_plan_without_it_keeps_its_id() -> None:
    assert "at_layers" not in EvaluationPlan().part_json
    assert EvaluationPlan(at_layers=(1,)).part_json != EvaluationPlan().part_json
    assert '"layers"' not in EvaluationPlan().part_json
