"""From jobs to the samples of a law: one per fixed k where the law is per k."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from orchestrator.scaling.fit import envelope
from orchestrator.scaling.fit.eligible_jobs import FitOptions
from orchestrator.scaling.fit.sample import Observation, Sample, best, by_cell, by_rate, converges, mean_loss
from orchestrator.scaling.types import Excluded, JobMeasurement, LawName


def samples(law: LawName, kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    """Return what a law is to be fitted to, by rising k, from the jobs it may use; empty where there are none."""
    return _BUILDERS[law](kept, excluded, choices)


def _per_k(rows: Iterable[JobMeasurement]) -> dict[int, list[JobMeasurement]]:
    found: dict[int, list[JobMeasurement]] = {}
    for row in rows:
        found.setdefault(row.k, []).append(row)
    return dict(sorted(found.items()))


def _losses(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    return [_loss_sample(rows, excluded, choices, fixed=k) for k, rows in _per_k(kept).items()]


def _surface(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    return [_loss_sample(kept, excluded, choices, second=lambda row: float(row.k))] if kept else []


def _subjects(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    def size(row: JobMeasurement) -> float:
        return float(row.subject_size or 1)

    return [_loss_sample(rows, excluded, choices, fixed=k, second=size) for k, rows in _per_k(kept).items()]


def _loss_sample(
    rows: list[JobMeasurement],
    excluded: list[Excluded],
    choices: FitOptions,
    *,
    fixed: int | None = None,
    second: Callable[[JobMeasurement], float] = lambda _: 1.0,
) -> Sample:
    chosen, worse = best(rows, choices)
    observations = [
        Observation((row.job_id,), float(row.n_latents or 0), second(row), row.k, row.subject,
                    float(choices.loss_of(row) or 0), (float(row.n_latents or 0), second(row)))
        for row in chosen
    ]  # fmt: skip
    return Sample(group(fixed, choices), subject_of(rows), tuple(observations), (*excluded, *worse), k=fixed)


def _counts(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    found = []
    for k, rows in _per_k(kept).items():
        chosen, worse = best(rows, choices)
        observations = tuple(_count(row, choices.epsilon) for row in chosen)
        found.append(Sample(group(k, choices), subject_of(rows), observations, (*excluded, *worse), k=k))
    return found


def _count(row: JobMeasurement, epsilon: float) -> Observation:
    n, tokens = float(row.n_latents or 0), row.tokens_to_convergence.get(epsilon)
    value = tokens or row.tokens_lower_bound.get(epsilon) or 1.0
    return Observation((row.job_id,), n, 1.0, row.k, row.subject, value, (n, 1.0), censored=not tokens)


def _rates(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    return [_rate_sample(rows, excluded, choices, name=group(k, choices), k=k) for k, rows in _per_k(kept).items()]


def _frontiers(kept: list[JobMeasurement], excluded: list[Excluded], choices: FitOptions) -> list[Sample]:
    return [
        envelope.sample(rows, excluded, choices.flops, name=group(k, choices), k=k) for k, rows in _per_k(kept).items()
    ]


def group(k: int | None, choices: FitOptions) -> str:
    """Return the name of what is held fixed, such as `k=8`."""
    return ", ".join(([f"k={k}"] if k is not None else []) + list(choices.label()))


def subject_of(rows: Sequence[JobMeasurement]) -> str:
    """Return the subject, or the subjects from small to large."""
    sizes = {row.subject: row.subject_size or 0 for row in rows}
    return ", ".join(sorted(sizes, key=lambda name: (sizes[name], name)))


_BUILDERS: dict[LawName, Callable[[list[JobMeasurement], list[Excluded], FitOptions], list[Sample]]] = {
    "ln": _losses, "lc": _frontiers, "lnk": _surface, "tn": _counts, "lr": _rates, "ls": _subjects,
}  # fmt: skip

OPEN = "the largest lr tried converged: a lower bound"


def _rate_sample(
    rows: Sequence[JobMeasurement], excluded: Sequence[Excluded], choices: FitOptions, *, name: str, k: int
) -> Sample:
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
