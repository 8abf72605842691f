"""lr*(N): at each n the largest learning rate that converges; the best one, of the lowest loss, is told beside it."""

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.scaling.cells import by_cell, by_rate, converges, mean_loss
from orchestrator.scaling.eligibility import Choices
from orchestrator.scaling.findings import Excluded, Measured
from orchestrator.scaling.samples import Observation, Sample

OPEN = "the largest lr tried converged: a lower bound"


def sample(rows: Sequence[Measured], excluded: Sequence[Excluded], choices: Choices, *, name: str, k: int) -> Sample:
    """Return one observation per n; where even the largest learning rate tried converged, it is a bound."""
    observations, out, best = [], list(excluded), dict[int, float]()
    for cell, inside in by_cell(rows).items():
        rates = {rate: jobs for rate, jobs in by_rate(inside).items() if rate is not None}
        works = [rate for rate, jobs in rates.items() if converges(jobs)]
        if len(rates) < 2 or not works:
            why = "no learning rate converged at its n" if len(rates) > 1 else "the only learning rate tried at its n"
            out += [Excluded(row.job_id, why) for row in inside]
            continue
        largest, n = max(works), float(cell.n_latents)
        is_open = largest == max(rates)
        jobs = tuple(row.job_id for row in rates[largest])
        flag = OPEN if is_open else ""
        step = 0.0 if is_open else math.log(min(rate for rate in rates if rate > largest) / largest)
        observations.append(Observation(jobs, n, 1.0, cell.k, cell.subject, largest, (n, 1.0), is_open, flag, step))
        best[cell.n_latents] = min(works, key=lambda rate: mean_loss(rates[rate], choices))
        why = f"not the largest lr that converges at n = {cell.n_latents} (that is {largest:g})"
        out += [Excluded(row.job_id, why) for rate in rates if rate != largest for row in rates[rate]]
    return Sample(name, rows[0].subject, tuple(observations), tuple(out), notes=_best(best), k=k)


def _best(best: dict[int, float]) -> tuple[str, ...]:
    """Say which learning rate had the lowest loss at each n, and how it goes with n."""
    if not best:
        return ()
    listed = ", ".join(f"{n}: {rate:g}" for n, rate in sorted(best.items()))
    told = f"The best lr (lowest loss), by n: {listed}"
    if len(best) > 2:
        slope = float(np.polyfit([math.log(n) for n in best], [math.log(rate) for rate in best.values()], 1)[0])
        told += f"; it goes as n^{slope:.2f}"
    return (f"{told}.",)
