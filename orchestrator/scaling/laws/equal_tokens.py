"""Laws at equal tokens: L_T(N), and the best learning rate by size. No job has to have converged for them."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.scaling.fit.equal_tokens import at_tokens, why_not_there
from orchestrator.scaling.fit.missing_jobs import like_the_others
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.sample import (
    Observation,
    Sample,
    best,
    by_cell,
    by_rate,
    group,
    mean_loss,
    per_k,
    subject_of,
)
from orchestrator.scaling.forms import LINE, Form
from orchestrator.scaling.law import Figure, Law, MissingJob, Quantity
from orchestrator.scaling.laws.loss import LOSS_BY_SIZE
from orchestrator.scaling.plots import law_plots
from orchestrator.scaling.types import Excluded, JobMeasurement

OPEN_RATE = "the largest lr tried is the best: a lower bound"
_LEAST_RATES = 3


def _why_no_loss(row: JobMeasurement, options: FitOptions) -> str:
    if row.outcome == "diverged":
        return "it diverged"
    return why_not_there(row, options.tokens)


def _why_no_rate(row: JobMeasurement, options: FitOptions) -> str:
    if row.lr is None:
        return "its learning rate is not known: no attempt has told"
    return "" if row.outcome == "diverged" else why_not_there(row, options.tokens)


def _there(rows: Sequence[JobMeasurement], options: FitOptions) -> list[JobMeasurement]:
    return [at_tokens(row, options.tokens or 0) for row in rows]


def _loss_samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    found = []
    for k, rows in per_k(_there(kept, options)).items():
        chosen, worse = best(rows, options)
        observations = tuple(
            Observation((row.job_id,), float(row.n_latents or 0), 1.0, row.k, row.subject, float(row.fvu or 1.0),
                        cell=(float(row.n_latents or 0), 1.0))
            for row in chosen
        )  # fmt: skip
        found.append(Sample(_group(k, options), subject_of(rows), observations, (*excluded, *worse), k=k))
    return found


def _rate_samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    return [
        _rate_sample(rows, excluded, options, name=_group(k, options), k=k)
        for k, rows in per_k(_there(kept, options)).items()
    ]


def _rate_sample(
    rows: Sequence[JobMeasurement], excluded: Sequence[Excluded], options: FitOptions, *, name: str, k: int
) -> Sample:
    """Return one observation per n: the vertex of the parabola through the lowest loss and its neighbours."""
    observations, out = [], list(excluded)
    for cell, inside in by_cell(rows).items():
        rates = {rate: jobs for rate, jobs in by_rate(inside).items() if rate is not None}
        losses = [(rate, _loss_of(jobs, options)) for rate, jobs in rates.items()]
        at = min(range(len(losses)), key=lambda index: losses[index][1], default=0)
        if len(losses) < _LEAST_RATES or at == 0 or not math.isfinite(losses[at][1]):
            why = f"fewer than {_LEAST_RATES} learning rates at its n"
            if len(losses) >= _LEAST_RATES:
                why = "the smallest learning rate tried at its n is the best: the best may be smaller"
            out += [Excluded(row.job_id, why) for row in inside]
            continue
        n, is_open = float(cell.n_latents), at == len(losses) - 1
        rate, step = (losses[at][0], 0.0) if is_open else _vertex(losses[at - 1 : at + 2])
        jobs = tuple(row.job_id for row in rates[losses[at][0]])
        flag = OPEN_RATE if is_open else ""
        observations.append(Observation(jobs, n, 1.0, cell.k, cell.subject, rate, (n, 1.0), is_open, flag, step))
        why = f"not the best lr at n = {cell.n_latents} (that is {losses[at][0]:g})"
        out += [Excluded(row.job_id, why) for other in rates if other != losses[at][0] for row in rates[other]]
    return Sample(name, rows[0].subject, tuple(observations), tuple(out), k=k)


def _loss_of(rows: Sequence[JobMeasurement], options: FitOptions) -> float:
    """Return the mean loss of one rate; infinite where a seed of it diverged."""
    return math.inf if any(row.outcome == "diverged" for row in rows) else mean_loss(rows, options)


def _vertex(around: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the rate of the lowest loss by a parabola in log-log, and how coarsely ln of it is known.

    Where the larger neighbour diverged there is no parabola: the best rate tried, to half the way to its neighbours.
    """
    logs = [math.log(rate) for rate, _ in around]
    if not math.isfinite(around[2][1]):
        return around[1][0], (logs[2] - logs[0]) / 2
    square, slope, _ = np.polyfit(logs, [math.log(loss) for _, loss in around], 2)
    vertex = logs[1] if square <= 0 else -slope / (2 * square)
    return math.exp(min(max(vertex, logs[0]), logs[2])), 0.0


def _group(k: int, options: FitOptions) -> str:
    return f"{group(k, FitOptions())}, tokens={options.tokens}"


def _missing_loss(n: int, k: int, rows: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job like the others, converged or not; none where one is there that would only have to go on."""
    here = [row for row in rows if (row.n_latents, row.k) == (n, k) and row.state == "succeeded"]
    short = [row for row in here if row.outcome != "diverged" and any(math.isfinite(point.fvu) for point in row.curve)]
    if short:
        why = f"n = {n}, k = {k}: job {short[0].job_id} has too few tokens. Let it go on, or compare at fewer: --tokens"
        return MissingJob(n, k, "auto", no_use=f"{why}\norch extend {short[0].job_id} --max-tokens TOKENS")
    return like_the_others(n, k, [replace(row, outcome="converged") if row in here else row for row in rows])


def _missing_rate(n: int, k: int, rows: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job of twice the largest rate; of half the smallest where that has the lowest loss."""
    here = by_rate(row for row in rows if (row.n_latents, row.k) == (n, k) and row.lr is not None)
    losses = {rate: _loss_of(jobs, FitOptions()) for rate, jobs in here.items() if rate is not None}
    if not losses:
        return _missing_loss(n, k, rows)
    is_smallest = min(losses, key=lambda rate: losses[rate]) == min(losses) and len(losses) > 1
    return MissingJob(n, k, f"{min(losses) / 2 if is_smallest else 2 * max(losses):.3g}")


LOSS_AT_EQUAL_TOKENS = Law(
    key="lnt",
    title="L_T(N)",
    about="fvu against dictionary size at equal tokens",
    forms=LOSS_BY_SIZE.forms,
    exponent="b",
    finding="fvu after equal tokens, converged or not, falls with dictionary size as n^b",
    needs="jobs of 3 sizes or more whose curves reach the tokens",
    why_excluded=_why_no_loss,
    samples=_loss_samples,
    missing_job=_missing_loss,
    quantity=Quantity("fvu (held out) at equal tokens"),
    is_at_equal_tokens=True,
    figures=(Figure("lnt", law_plots.against_size),),
)

RATE_AT_EQUAL_TOKENS = Law(
    key="lrt",
    title="lr_T(N)",
    about="the learning rate of the lowest loss at equal tokens",
    forms=(Form("pure", LINE, (), ("A", "q"), ("exp", "as is"), "lr = A·n^q"),),
    exponent="q",
    finding="the learning rate with the lowest fvu after equal tokens goes as n^q",
    needs=f"3 sizes or more, each with {_LEAST_RATES} learning rates, the best of them neither end",
    why_excluded=_why_no_rate,
    samples=_rate_samples,
    missing_job=_missing_rate,
    quantity=Quantity("best learning rate at equal tokens"),
    is_at_equal_tokens=True,
    figures=(Figure("lrt", law_plots.against_size),),
)
