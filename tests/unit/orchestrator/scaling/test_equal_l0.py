"""Activations are compared at the L0 of TopK, between their own jobs, seed by seed."""

import math
from itertools import count

import pytest

from orchestrator.formatting import Interval
from orchestrator.scaling.equal_l0 import compare
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured

_NUMBERS = count(1)


def job(
    activation: str, l0: float, value: float, *, k: int = 8, seed: int = 0, fvu: float | None = None
) -> JobMeasurement:
    scores = {"delta_ce": Interval(value, math.nan, math.nan)}
    more = {} if fvu is None else {"fvu": fvu}
    return measured(256, k=k, job_id=next(_NUMBERS), activation=activation, l0=l0, seed=seed, scores=scores, **more)


def delta_ce(row: JobMeasurement) -> float | None:
    return row.scores["delta_ce"].value if row.scores else None


def power(l0: float, scale: float) -> float:
    return scale * math.pow(l0, -0.7)


def test_a_power_law_is_interpolated_exactly_and_seeds_are_paired() -> None:
    rows = []
    for seed, scale in enumerate((1.0, 2.0, 4.0)):
        rows += [
            job("topk", 8.0, power(8.0, scale), k=8, seed=seed),
            job("topk", 32.0, power(32.0, scale), k=32, seed=seed),
        ]
        rows += [job("relu", l0, power(l0, 1.3 * scale), seed=seed) for l0 in (4.0, 12.0, 50.0)]
    found = compare(rows, delta_ce)
    assert [(one.activation, one.n_latents, one.l0, one.seeds) for one in found] == [
        ("relu", 256, 8.0, (0, 1, 2)), ("relu", 256, 32.0, (0, 1, 2)),
    ]  # fmt: skip
    for one in found:
        assert one.ratio == pytest.approx((1.3, 1.3, 1.3)), "however far the seeds lie apart"
        assert one.baseline == pytest.approx(power(one.l0, 2.0))


def test_the_interval_is_students_over_the_seeds() -> None:
    ratios = (1.1, 1.2, 1.3)
    rows = [job("topk", 8.0, 1.0, seed=seed) for seed in range(3)]
    rows += [job("relu", 8.0, ratio, seed=seed) for seed, ratio in enumerate(ratios)]
    (found,) = compare(rows, delta_ce)
    logs = [math.log(ratio) for ratio in ratios]
    mean = sum(logs) / 3
    error = math.sqrt(sum((one - mean) ** 2 for one in logs) / 2 / 3)
    assert found.ratio == pytest.approx([math.exp(mean + at * 2.919986 * error) for at in (0, -1, 1)], rel=1e-6)


def test_of_several_rates_the_best_counts_by_fvu_whatever_the_order_and_the_metric() -> None:
    topk = [job("topk", 8.0, 0.6, fvu=0.3), job("topk", 8.0, 0.2, fvu=0.2)]
    beaten = [job("relu", 7.0, 0.1, fvu=0.9), job("relu", 8.5, 0.1, fvu=0.8)]
    relu = [job("relu", 4.0, 0.3, fvu=0.5), job("relu", 16.0, 0.3, fvu=0.1)]
    rows = [*topk, *beaten, *relu]
    for order in (rows, rows[::-1]):
        (found,) = compare(order, delta_ce)
        assert found.ratio.value == pytest.approx(1.5)
        assert found.jobs == (topk[1].job_id, *(row.job_id for row in relu))


def test_nothing_is_said_beyond_the_other_jobs_nor_of_jobs_without_the_metric() -> None:
    topk = job("topk", 8.0, 1.0)
    assert compare([topk, job("relu", 9.0, 1.0), job("relu", 30.0, 1.0)], delta_ce) == []
    assert compare([topk, job("relu", 4.0, 1.0, seed=1), job("relu", 30.0, 1.0, seed=1)], delta_ce) == []
    without = measured(256, k=8, job_id=next(_NUMBERS), activation="relu", l0=8.0)
    assert compare([topk, without], delta_ce) == []
    (alone,) = compare([topk, job("jumprelu", 8.0, 1.5)], delta_ce)
    assert alone.ratio.value == pytest.approx(1.5)
    assert math.isnan(alone.ratio.low)
    assert math.isnan(alone.ratio.high)
