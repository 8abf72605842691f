"""lr*(N): the largest learning rate that converges, by size."""

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.scaling.fit.eligible_jobs import why_not_ended
from orchestrator.scaling.fit.missing_jobs import at_a_larger_rate
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.sample import (
    Observation,
    Sample,
    by_cell,
    by_rate,
    converges,
    group,
    mean_loss,
    per_k,
)
from orchestrator.scaling.forms import LINE, Form
from orchestrator.scaling.law import Figure, Law, Quantity
from orchestrator.scaling.plots import job_plots, law_plots
from orchestrator.scaling.types import Excluded, JobMeasurement

OPEN = "the largest lr tried converged: a lower bound"


def _why_excluded(row: JobMeasurement, _: FitOptions) -> str:
    if why := why_not_ended(row):
        return why
    return "" if row.lr is not None else "its learning rate is not known: no attempt has told"


def _samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    return [_sample(rows, excluded, options, k=k) for k, rows in per_k(kept).items()]


def _sample(rows: Sequence[JobMeasurement], excluded: Sequence[Excluded], options: FitOptions, *, k: int) -> Sample:
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
        best[cell.n_latents] = min(works, key=lambda rate: mean_loss(rates[rate], options))
        why = f"not the largest lr that converges at n = {cell.n_latents} (that is {largest:g})"
        out += [Excluded(row.job_id, why) for rate in rates if rate != largest for row in rates[rate]]
    return Sample(group(k, options), rows[0].subject, tuple(observations), tuple(out), notes=_best_rates(best), k=k)


def _best_rates(best: dict[int, float]) -> tuple[str, ...]:
    """Say which learning rate had the lowest loss at each n, and how it goes with n."""
    if not best:
        return ()
    listed = ", ".join(f"{n}: {rate:g}" for n, rate in sorted(best.items()))
    told = f"The best lr (lowest loss), by n: {listed}"
    if len(best) > 2:
        slope = float(np.polyfit([math.log(n) for n in best], [math.log(rate) for rate in best.values()], 1)[0])
        told += f"; it goes as n^{slope:.2f}"
    return (f"{told}.",)


RATE_BY_SIZE = Law(
    key="lr",
    title="lr*(N)",
    about="the largest learning rate that converges",
    forms=(Form("pure", LINE, (), ("A", "q"), ("exp", "as is"), "lr* = A·n^q"),),
    exponent="q",
    finding="the largest learning rate that converges goes as n^q (expected −1/2)",
    needs="3 sizes or more, each with a learning rate that converges and a larger one that does not",
    why_excluded=_why_excluded,
    samples=_samples,
    missing_job=at_a_larger_rate,
    quantity=Quantity("learning rate lr*"),
    figures=(
        Figure("lr", job_plots.rates, needs_fit=False),
        Figure("lr-law", law_plots.against_size),
    ),
)
