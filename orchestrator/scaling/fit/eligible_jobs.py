"""Which jobs a law may be fitted to, and why it may not use the others: the checks that laws are made of."""

import math
from collections.abc import Sequence

from orchestrator.errors import FitError
from orchestrator.formatting import named
from orchestrator.scaling.fit.options import GROUNDS, FitOptions
from orchestrator.scaling.law import Law
from orchestrator.scaling.sparsity import why_other_sparsity
from orchestrator.scaling.types import Excluded, JobMeasurement


def sort_out(
    law: Law, rows: Sequence[JobMeasurement], options: FitOptions
) -> tuple[list[JobMeasurement], list[Excluded]]:
    """Return the jobs a law may use, and the others with the reason.

    Raises:
        FitError: jobs of several subjects, hook points, texts or activations, and none of them chosen.
    """
    kept, excluded, seen = [], [], dict[str, int]()
    for row in rows:
        why = _why_another(row, options) or _why_repeated(row, seen) or law.why_excluded(row, options)
        why = why or why_other_sparsity(row)
        if why:
            excluded.append(Excluded(row.job_id, why))
        else:
            kept.append(row)
            seen[row.config_id] = row.job_id
    _check_grounds(law, kept)
    return kept, excluded


def why_not_ended(row: JobMeasurement) -> str:
    """Return why a job has no result at a known size; empty where it has one."""
    if row.state == "failed":
        return f"it failed: {row.reason}" if row.reason else "it failed"
    if row.state == "cancelled":
        return "it was cancelled"
    if row.state != "succeeded":
        return f"it has not ended ({row.state})"
    return _why_without_size(row)


def why_diverged(row: JobMeasurement) -> str:
    """Return why a job has no result, or one that no loss can be taken from; empty where it can."""
    without = {"diverged": "it diverged", "not_learning": "not learning: its fvu stayed near that of untrained weights"}
    return why_not_ended(row) or without.get(row.outcome or "", "")


def why_not_converged(row: JobMeasurement) -> str:
    """Return why a job has no loss at convergence; empty where it has converged."""
    if why := why_diverged(row):
        return why
    return "" if row.outcome == "converged" else f"not converged: it reached its budget of {row.max_tokens} tokens"


def why_without_loss(row: JobMeasurement, options: FitOptions) -> str:
    """Return why the loss of a job cannot be fitted to; empty where it can."""
    if not row.curve and row.fvu is None:
        return "no curve is stored of it"
    loss = options.loss_of(row)
    if loss is None or not math.isfinite(loss):
        return "its L∞ is not settled" if options.loss == "l_inf" else "its last loss is not a number"
    if row.is_dead:
        return f"a dead SAE: fvu {row.fvu:.4g} is no better than the mean"
    return "" if loss > 0 else f"its loss is {loss:g}: nothing is left to be explained"


def why_without_count(row: JobMeasurement, epsilon: float) -> str:
    """Return why a job tells nothing of tokens to convergence; empty where it has them, or a bound."""
    known = row.tokens_to_convergence.get(epsilon) or row.tokens_lower_bound.get(epsilon)
    return "" if known else f"no tokens to convergence at epsilon {epsilon:g} are stored of it"


def why_without_curve(row: JobMeasurement) -> str:
    """Return why the curve of a job cannot be used, whether it has ended or not; empty where it can."""
    if not row.curve:
        return "no curve is stored of it"
    if why := _why_without_size(row):
        return why
    if not any(math.isfinite(point.fvu) and 0 < point.fvu < 1 for point in row.curve):
        return "no point of its curve is below 1"
    return ""


def _why_without_size(row: JobMeasurement) -> str:
    return "its number of latents is not known: no attempt has told" if row.n_latents is None else ""


def _why_another(row: JobMeasurement, options: FitOptions) -> str:
    for name in GROUNDS:
        wanted = getattr(options, name)
        if wanted is not None and getattr(row, name) != wanted:
            return f"another {name}: {getattr(row, name)}"
    return ""


def _why_repeated(row: JobMeasurement, seen: dict[str, int]) -> str:
    return f"the same config as job {seen[row.config_id]}" if row.config_id in seen else ""


def _check_grounds(law: Law, rows: Sequence[JobMeasurement]) -> None:
    """Refuse jobs that differ in what must be the same for all."""
    for name in law.grounds:
        jobs: dict[str, list[int]] = {}
        for row in rows:
            jobs.setdefault(getattr(row, name), []).append(row.job_id)
        if len(jobs) > 1:
            listed = "; ".join(
                f"{value} ({named(len(ids), 'job')}, such as {ids[0]})" for value, ids in sorted(jobs.items())
            )
            hint = f"Choose one: --{name} {min(jobs)!r}"
            if name == "subject":
                hint += ", or compare the subjects: --law ls"
            raise FitError(f"these jobs mix {GROUNDS[name]}: {listed}", hint=hint)
