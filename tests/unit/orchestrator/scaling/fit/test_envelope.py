"""L(C): the lower envelope of all curves, its ends, and who is on it."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.errors import FitError
from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.envelope import END
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.options import FitOptions
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
    assert {one.flagged for one in sample.shown} == {END}
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
    assert found.coefficients["alpha"].value == pytest.approx(0.2 / 1.7, abs=0.03), "as the planted curves cross"


def test_the_smallest_size_is_flagged_when_it_is_off_the_trend() -> None:
    rows = [_curved(n) for n in (64, 128, 256, 512, 1024, 2048)]
    [usual] = _samples(rows)
    assert not any("off-trend" in one.flagged for one in usual.shown)
    better = rows[0].curve and tuple(p._replace(fvu=p.fvu * 0.88) for p in rows[0].curve)
    odd = measured(64, curve=better, fvu=better[-1].fvu)
    [sample] = _samples([odd, *rows[1:]])
    flagged = {one.jobs for one in sample.shown if "off-trend" in one.flagged}
    assert flagged == {(odd.job_id,)}
    assert any("The smallest n, 64, is off the trend" in note for note in sample.notes)


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
