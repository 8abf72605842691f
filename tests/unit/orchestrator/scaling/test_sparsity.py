"""Losses are compared, and laws fitted, at one L0."""

from typing import Any

import pytest

from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.sparsity import by_l0, why_other_sparsity
from tests.job_measurements import measured


@pytest.mark.parametrize(("l0", "is_told"), [(8.0, True), (7.7, True), (8.4, True), (7.5, False), (100.8, False)])
def test_l0_is_k_within_five_per_cent(l0: float, is_told: bool) -> None:
    assert (why_other_sparsity(measured(k=8, l0=l0)) == "") == is_told


@pytest.mark.parametrize("values", [{"l0": None}, {"outcome": "diverged", "l0": 0.0}, {"fvu": 1.2, "l0": 0.1}])
def test_what_is_told_by_other_checks_is_left_to_them(values: dict[str, Any]) -> None:
    assert why_other_sparsity(measured(**values)) == ""


@pytest.mark.parametrize("law", LAWS)
def test_every_law_refuses_another_l0(law: str) -> None:
    relu, topk = measured(256, k=8, l0=100.8, tokens=500.0), measured(256, k=8, l0=8.0)
    kept, excluded = sort_out(LAWS[law], [relu, topk], FitOptions(tokens=900))
    assert [row.job_id for row in kept] == [topk.job_id]
    assert [(one.job_id, one.why) for one in excluded] == [
        (relu.job_id, "its sparsity is not its k: L0 100.8 was measured, k = 8")
    ]


def test_a_rate_that_diverges_still_bounds_the_largest_that_converges() -> None:
    diverged = measured(256, k=8, l0=0.0, outcome="diverged", lr=1.0)
    assert sort_out(LAWS["lr"], [diverged], FitOptions())[0] == [diverged]


def test_groups_span_five_per_cent_from_their_sparsest() -> None:
    rows = [measured(l0=l0) for l0 in (16.0, 8.4, 8.0, 8.2, 8.6)] + [measured(l0=None)]
    assert [[row.l0 for row in group] for group in by_l0(rows)] == [[8.0, 8.2, 8.4], [8.6], [16.0]]
