"""The jobs a plan chooses from: sizes, seeds, learning rates and budgets of tokens, and what each costs at most."""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from orchestrator.config.job import JobConfig
from orchestrator.formatting import rounded
from orchestrator.scaling.plan.forecast import ForecastInputs, cost, expected, ks_of, length, sized, stretch, times
from orchestrator.scaling.plan.lr_search import Found, next_step
from orchestrator.scaling.plan.throughput import speed
from orchestrator.scaling.types import Fit, JobMeasurement

MARGIN = 1.25
"""A new job may train so much longer than the upper end of what is expected."""
_WIDEST = 4.0
"""Times what is expected: a wide interval of T(N) must not make an excessive budget of tokens."""
_DOUBLINGS = 3
"""New sizes go so far beyond the largest that was fitted; none below the smallest, where laws bend first."""
_RATE_DIGITS = 3


class Candidate(NamedTuple):
    """One job that could be enqueued."""

    n_latents: int
    k: int
    lr: float | None
    """None = auto."""
    seed: int
    max_tokens: int
    flops: float | None
    """Executed at most, the subject's included."""
    seconds: float | None
    """On the device of the inputs, at most."""
    config: JobConfig
    lr_from: str
    """Where the rate is from, in words."""

    def price(self, unit: str) -> float | None:
        """Return what it costs at most in seconds or FLOPs; None where nothing tells."""
        return self.seconds if unit == "seconds" else self.flops


def sizes(fit: Fit, ks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the (n, k) at which another job may help a fit: those it was made from, and doublings of the largest."""
    known = sorted({round(one.x) for one in fit.residuals if not one.censored})
    beyond = [known[-1] * 2**step for step in range(1, _DOUBLINGS + 1)]
    for n_latents in [*known, *beyond]:
        for k in ks:
            if n_latents >= k:
                yield n_latents, k


def candidate(inputs: ForecastInputs, n_latents: int, k: int) -> Candidate:
    """Return the next job at a size: with a seed that no job there has."""
    lr, lr_from = rate(inputs, n_latents, k)
    tokens = budget_tokens(inputs, n_latents, k)
    flops = cost(inputs, n_latents, k, tokens).flops_executed
    pace = speed(inputs.rows, device=inputs.device, n_latents=n_latents)
    seconds = flops / pace.flops_per_second.low if flops is not None and pace else None
    config = sized(inputs.config, n_latents, k, max_tokens=tokens)
    optimizer = config.optimizer.model_copy(update={"lr": "auto" if lr is None else lr})
    config = config.model_copy(update={"optimizer": optimizer})
    start = inputs.config.training.seed
    first = Candidate(n_latents, k, lr, start, tokens, flops, seconds, config, lr_from)
    return first if start not in _seeds(inputs, n_latents, k) else another(inputs, first)


def another(inputs: ForecastInputs, job: Candidate) -> Candidate:
    """Return the same job with the next seed that is free there."""
    used = _seeds(inputs, job.n_latents, job.k)
    seed = next(seed for seed in range(job.seed + 1, job.seed + len(used) + 2) if seed not in used)
    training = job.config.training.model_copy(update={"seed": seed})
    return job._replace(seed=seed, config=job.config.model_copy(update={"training": training}))


def _seeds(inputs: ForecastInputs, n_latents: int, k: int) -> set[int]:
    return {row.seed for row in inputs.rows if (row.n_latents, row.k) == (n_latents, k)}


def budget_tokens(inputs: ForecastInputs, n_latents: int, k: int) -> int:
    """Return max_tokens of a new job: by what its size took so far, else by T(N), else as at the nearest size.

    Where the learning rate depends on the budget, by auto or by a decay, a size keeps the budget that it has.
    """
    rows = [row for row in inputs.rows if row.n_latents]
    there = [row for row in rows if (row.n_latents, row.k) == (n_latents, k) and row.outcome == "converged"]
    batch = inputs.config.training.batch_tokens
    if there:
        most = max(row.max_tokens for row in there)
        is_bound = inputs.config.optimizer.decay_tokens or any(row.lr_is_auto for row in there)
        longest = MARGIN * max(row.tokens_seen for row in there)
        return most if is_bound else min(most, math.ceil(longest / batch) * batch)
    counted = length(inputs, n_latents, k)
    if counted is None:
        near = min(rows, key=lambda row: (abs(math.log((row.n_latents or 1) / n_latents)), -row.max_tokens))
        return near.max_tokens
    trained = times(counted, stretch(inputs.rows))
    return math.ceil(MARGIN * min(trained.high, _WIDEST * trained.value) / batch) * batch


def rate(inputs: ForecastInputs, n_latents: int, k: int) -> tuple[float | None, str]:
    """Return the learning rate of a new job, and where it is from.

    The best of its size, where one is known; else lr*(N) times what the best rates are of the largest that converge;
    else auto, or, where the jobs so far have rates of their own, on from the nearest size as 1/√n.
    """
    known = next_step(inputs.rows).found
    here = known.get((n_latents, k))
    best = _best_row(inputs, here) if here else None
    if best is not None:
        return (None, "auto, as there") if best.lr_is_auto else (best.lr, "the best there")
    fits = [fit for fit in inputs.rates if k in ks_of(fit)] or list(inputs.rates)
    if fits:
        share = _share(known)
        lr = expected(fits[0], n_latents, k).value * share
        return rounded(lr, _RATE_DIGITS), "lr*(N)" if share == 1 else f"{share:.2g} of lr*(N), as the best so far are"
    return _rate_from_nearest(inputs.rows, n_latents, k)


def _best_row(inputs: ForecastInputs, found: Found) -> JobMeasurement | None:
    ids = [one.job_id for one in found.tried if one.lr is not None and one.lr == found.best]
    return next((row for row in inputs.rows if row.job_id in ids), None)


def _share(known: dict[tuple[int, int], Found]) -> float:
    """Return what the best rate is of the largest that converges: the median over the sizes that know both."""
    shares = [
        found.best / found.largest_converging for found in known.values() if found.best and found.largest_converging
    ]
    return median(shares) if shares else 1.0


def _rate_from_nearest(rows: Sequence[JobMeasurement], n_latents: int, k: int) -> tuple[float | None, str]:
    told = [row for row in rows if row.lr and row.n_latents and row.outcome == "converged"]
    if not told or all(row.lr_is_auto for row in rows):
        return None, "auto"
    near = min(told, key=lambda row: (abs(math.log((row.n_latents or 1) / n_latents)), row.k != k, row.fvu or 1.0))
    lr = (near.lr or 0.0) * math.sqrt((near.n_latents or 1) / n_latents)
    return rounded(lr, _RATE_DIGITS), f"on from n = {near.n_latents} as 1/√n"
