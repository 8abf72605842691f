"""L(C): the lower envelope of all curves, its ends, and who is on it."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.errors import FitError
from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.envelope import END, GAP
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.outliers import OFF_LAW, OFF_TREND
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.laws.compute import LOSS_BY_COMPUTE
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured, point


def _samples(rows: Sequence[JobMeasurement], **values: Any) -> list[Sample]:
    options = FitOptions(**values)
    return LOSS_BY_COMPUTE.samples(*sort_out(LOSS_BY_COMPUTE, rows, options), options)


def _curved(n: int, **values: Any) -> JobMeasurement:
    """Return a job whose curve falls from early on, the lower the larger it is, and costs as much as it is large."""
    curve = tuple(
        point(t, 2.0 * n**-0.2 * (1 + 10 * n**0.5 / t), 12.0 * n * 64 * t) for t in (2**e for e in range(6, 19))
    )
    return measured(n, curve=curve, fvu=curve[-1].fvu, **values)


def test_the_envelope_falls_and_its_ends_are_told() -> None:
    rows = [_curved(n) for n in (64, 128, 256, 512, 1024)]
    [sample] = _samples(rows)
    losses = [one.value for one in sample.observations]
    assert losses == sorted(losses, reverse=True)
    assert [one.x for one in sample.observations] == sorted(one.x for one in sample.observations)
    assert {one.flagged for one in sample.shown} <= {END, GAP}
    assert END in {one.flagged for one in sample.shown}
    every = {one.x: one.value for one in (*sample.observations, *sample.shown)}
    for row in rows:
        for p in row.curve:
            cheaper = [value for cost, value in every.items() if cost <= p.flops_dense]
            assert not cheaper or p.fvu > 1 or min(cheaper) <= p.fvu * 1.25, "no curve is far below its envelope"


def test_jobs_on_the_envelope_that_ended_badly_are_named() -> None:
    ends: dict[int, dict[str, Any]] = {
        64: {"outcome": "max_tokens"},
        256: {"outcome": "diverged"},
        512: {"state": "failed", "outcome": None},
    }
    rows = [_curved(n, **ends.get(n, {})) for n in (64, 128, 256, 512, 1024)]
    [sample] = _samples(rows)
    named = f"jobs {rows[2].job_id} (diverged), {rows[3].job_id} (failed)."
    assert [note for note in sample.notes if note.endswith(named)]
    assert not [note for note in _samples([_curved(n) for n in ends])[0].notes if "as far as" in note]


def test_the_curves_of_two_sizes_are_no_law_of_compute() -> None:
    """They fall with tokens: near 1/t here, whatever larger sizes would gain."""
    with pytest.raises(FitError, match=r"curves of 3 sizes or more .* it has \d+ bins of n = 128;"):
        fit("lc", [_curved(64), _curved(128)], n_bootstrap=100)
    sizes = (64, 128, 256, 512, 1024)
    [found] = fit("lc", [_curved(n) for n in sizes], n_bootstrap=100)
    alpha = found.coefficients["alpha"]
    assert alpha.low <= 0.2 / 1.7 <= alpha.high, "as the planted curves cross"


def _falling(n: int, factor: float = 1.0) -> JobMeasurement:
    """Return a job whose curve, 0.05 + 2·n^−0.5 + 200·t^−0.6, touches an envelope with α = 0.3 / 1.1."""
    places = [2 ** (13 + at / 4) for at in range(45)]
    curve = tuple(point(int(t), factor * (0.05 + 2 * n**-0.5 + 200 * t**-0.6), 12.0 * n * 64 * t) for t in places)
    return measured(n, curve=curve, fvu=curve[-1].fvu)


SIZES = [2**e for e in range(7, 15)]


def test_the_smallest_size_is_flagged_when_it_is_off_the_trend() -> None:
    [usual] = fit("lc", [_falling(n) for n in SIZES], n_bootstrap=100)
    assert {one.flagged for one in usual.residuals} <= {"", END, GAP}
    rows = [_falling(n, 0.88 if n == SIZES[0] else 1.0) for n in SIZES]
    [found] = fit("lc", rows, n_bootstrap=100)
    assert {one.jobs for one in found.residuals if one.flagged in (OFF_LAW, OFF_TREND)} == {(rows[0].job_id,)}
    assert any("n = 128" in note and "left out" in note for note in found.notes)
    assert found.coefficients["alpha"].value == pytest.approx(0.3 / 1.1, abs=0.01)


@pytest.mark.parametrize("bad", [128, 1024])
def test_a_bad_job_leaves_a_gap_and_does_not_bend_the_envelope(bad: int) -> None:
    """The frontier beside it is its neighbours' curves, above the envelope: at the smallest n α came out at 0.35."""
    [found] = fit("lc", [_falling(n, 1.18 if n == bad else 1.0) for n in SIZES], n_bootstrap=100)
    assert found.coefficients["alpha"].value == pytest.approx(0.3 / 1.1, abs=0.01)
    if bad == 1024:
        assert any(one.flagged == GAP for one in found.residuals)
        assert any("points in gaps of the envelope" in note for note in found.notes)


@pytest.mark.parametrize(("flops", "cost"), [("dense", 8.0), ("executed", 4.0), ("subject+executed", 6.0)])
def test_what_the_axis_of_the_envelope_counts(flops: Any, cost: float) -> None:
    row = measured(64, curve=(point(1, 0.5, 8.0),))
    [sample] = _samples([row], flops=flops)
    assert sample.observations[0].x == cost
    assert sample.group == ("k=8" if flops == "dense" else f"k=8, flops={flops}")


def test_jobs_without_a_usable_curve_are_off_the_envelope() -> None:
    rows = [measured(64, fvu=None), measured(64, curve=(point(1, math.nan), point(2, 1.2)))]
    kept, excluded = sort_out(LOSS_BY_COMPUTE, rows, FitOptions())
    assert (kept, [one.why for one in excluded]) == (
        [],
        ["no curve is stored of it", "no point of its curve is below 1"],
    )
    beaten = measured(64, curve=(point(900, 0.9, 9e9),))
    [sample] = _samples([measured(64), beaten])
    assert [(one.job_id, one.why) for one in sample.excluded] == [(beaten.job_id, "off the envelope: others cost less")]
