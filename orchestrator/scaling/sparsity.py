"""Which SAEs are equally sparse: losses are compared at one L0, the mean of active latents per token, and at no other.

`k` sets the L0 of TopK alone. Of ReLU and JumpReLU a penalty does, and where training ends it may be anything; in a
short run BatchTopK's threshold can be off, too. In equation 3 of Gao et al. the exponent of k is β_k + γ·ln n, −0.15 at
n = 2^14: values of L0 within `SAME_L0` are worth 0.7% of the fvu, about what two seeds differ by.
"""

import math
from collections.abc import Iterable

from orchestrator.scaling.types import JobMeasurement

SAME_L0 = 0.05
"""Relative difference up to which two values of L0 are taken for one."""


def is_same_l0(one: float, other: float) -> bool:
    """Say whether two values of L0 are within `SAME_L0` of the larger."""
    return abs(one - other) <= SAME_L0 * max(abs(one), abs(other))


def why_other_sparsity(row: JobMeasurement) -> str:
    """Return why a job says nothing of its k: its measured L0 is another; empty where it does, or nothing is known.

    A job that diverged, or explains no more than the mean, is left to the checks for that.
    """
    if row.l0 is None or not math.isfinite(row.l0) or row.outcome == "diverged" or row.is_dead:
        return ""
    if is_same_l0(row.l0, row.k):
        return ""
    return f"its sparsity is not its k: L0 {row.l0:.4g} was measured, k = {row.k}"


def by_l0(rows: Iterable[JobMeasurement]) -> list[list[JobMeasurement]]:
    """Return the jobs with a known L0 in groups of one L0, the sparsest first.

    A group spans no more than `SAME_L0`, from its sparsest job on.
    """
    groups: list[list[JobMeasurement]] = []
    known = [(row.l0, row) for row in rows if row.l0 is not None and math.isfinite(row.l0)]
    first = math.nan
    for l0, row in sorted(known, key=lambda pair: (pair[0], pair[1].job_id)):
        if groups and is_same_l0(first, l0):
            groups[-1].append(row)
        else:
            groups.append([row])
            first = l0
    return groups
