"""The error of a fit that lacks jobs: what the law needs, what there is, and what is missing."""

import math
from collections import defaultdict
from collections.abc import Sequence

from orchestrator.errors import FitError
from orchestrator.formatting import jobs_named
from orchestrator.job_states import OPEN
from orchestrator.scaling.fit.sample import Observation, Sample, by_rate, converges
from orchestrator.scaling.law import Law, MissingJob
from orchestrator.scaling.types import Excluded, JobMeasurement

_LEAST_SIZES = 3
_SMALLEST = 1024
"""The size to begin with where there is none."""
_MOST_NAMED = 8
_MOST_REASONS = 4


def shortage(
    law: Law, sample: Sample | None, rows: Sequence[JobMeasurement], *, excluded: Sequence[Excluded] = ()
) -> FitError:
    """Return the error that names what a law lacks; `rows` are all jobs that were offered."""
    if not rows:
        return FitError(f"{law.title} needs {law.needs}; there is no job", hint="Add some: orch enqueue FILE")
    inside = [row for row in rows if sample is None or sample.k in (None, row.k)]
    if law.compares_subjects and sample is not None:
        inside = _of_poorest_subject(inside, sample)
    held = f" ({sample.group})" if sample is not None and sample.group else ""
    missing = missing_jobs(law, sample, inside)
    own = {row.job_id for row in inside}
    reasons = [one for one in (sample.excluded if sample is not None else excluded) if one.job_id in own]
    absent = _what_is_missing(missing) + _what_is_coming(missing)
    there, left_out = _what_there_is(law, sample), _what_was_left_out(reasons)
    return FitError(
        f"{law.title}{held} needs {law.needs}; it has {there}{absent}{left_out}",
        hint="\n".join(commands(law, inside, missing)),
    )


def missing_jobs(law: Law, sample: Sample | None, rows: Sequence[JobMeasurement]) -> list[MissingJob]:
    """Return the jobs to add, as few as would do; `rows` are those that were offered for this sample."""
    if law.compares_subjects and all(row.subject_size is None for row in rows):
        return []  # more jobs of a subject of unknown size are of no use either
    sizes = sorted({row.n_latents for row in rows if row.n_latents})
    known = set[tuple[int, int]]()
    if law.is_over_compute:  # the envelope has to be longer: the sizes that are on their way, else larger ones
        coming = sorted({row.n_latents for row in rows if row.n_latents and row.state in OPEN})
        wanted = [*coming, *_ladder(sizes, len(sizes) + max(0, 2 - len(coming)))[len(sizes) :]]
    else:
        wanted = _ladder(sizes, _LEAST_SIZES)
        subjects = {row.subject for row in rows}
        known = {(int(one.x), one.k or 0) for one in _known(sample) if one.subject in subjects}
    ks = sorted({row.k for row in rows})
    if law.is_over_k and len(ks) == 1:
        ks = [ks[0], 2 * ks[0]]
    return [law.missing_job(n, k, rows) for k in ks for n in wanted if (n, k) not in known]


def commands(law: Law, rows: Sequence[JobMeasurement], missing: Sequence[MissingJob]) -> list[str]:
    """Return what to do, a line each."""
    sweep, lines = rows[0].sweep, []
    if waiting := [row for row in rows if row.state in OPEN]:
        lines.append(f"{len(waiting)} of them {'has' if len(waiting) == 1 else 'have'} not ended: orch wait {sweep}")
    if failed := [row for row in rows if row.state == "failed"]:
        lines.append(f"Try the failed again: orch retry {' '.join(str(row.job_id) for row in failed[:_MOST_NAMED])}")
    subject = f" subject.model={rows[0].subject.replace('@', ' subject.revision=')}" if law.compares_subjects else ""
    lines += dict.fromkeys(one.no_use for one in missing if one.no_use)
    longer: dict[int, list[int]] = defaultdict(list)
    for one in missing:
        if one.extends:
            longer[one.extends[1]].append(one.extends[0])
    for budget, jobs in longer.items():
        lines.append(f"Train them on: orch extend {' '.join(map(str, jobs))} --max-tokens {budget}")
    for grid in _grids([one for one in missing if not (one.held_by or one.no_use or one.extends)]):
        lines.append(f"Supply them: orch enqueue FILE --name {sweep} {grid}{subject}")
    if law.compares_subjects and not missing:
        lines.append(f"Add a subject: orch enqueue FILE --name {sweep} subject.model=ANOTHER")
    return lines or [f"Add jobs: orch enqueue FILE --name {sweep}"]


def like_the_others(n: int, k: int, rows: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job like the others; longer, slower or of another seed where one like it gave no loss."""
    here = [row for row in rows if (row.n_latents, row.k) == (n, k)]
    lr = _rate_to_try(n, k, rows)
    if held := [row for row in here if row.state in (*OPEN, "failed")]:
        return MissingJob(n, k, lr, held_by=_with_states(held))
    if short := [row for row in here if row.outcome == "max_tokens"]:
        return _longer(MissingJob(n, k, lr), short)
    ended = [row for row in here if row.state == "succeeded"]
    idle = [row for row in ended if row.lr is not None and row.outcome == "not_learning"]
    if idle:
        too_small = max(row.lr or 0 for row in idle)
        learns_nearby = not any(row.lr_is_auto for row in idle) if lr == "auto" else float(lr) > 2 * too_small
        return MissingJob(n, k, lr if learns_nearby else f"{2 * too_small:.3g}")
    too_large = [row.lr for row in ended if row.lr is not None and (row.outcome == "diverged" or row.is_dead)]
    if too_large:
        return MissingJob(n, k, f"{min(too_large) / 2:.3g}")
    if unsettled := [row for row in ended if any(row.tokens_lower_bound.values())]:
        return _past_its_plateau(MissingJob(n, k, lr), unsettled)
    # A job of the same config would come to the same.
    return MissingJob(n, k, lr, f" training.seed={1 + max(row.seed for row in ended)}" if ended else "")


def _longer(job: MissingJob, short: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job with twice the budget, where one goes on to it; none where twice was too short already."""
    ordered = sorted(short, key=lambda row: (row.max_tokens, -(row.fvu or math.inf)))
    first, last = ordered[0], ordered[-1]
    shortest = min(row.first_max_tokens or row.max_tokens for row in short)
    if last.max_tokens < 2 * shortest:
        budget = 2 * last.max_tokens
        if last.decay_tokens:
            return job._replace(more=f" training.max_tokens={budget}")
        return job._replace(extends=(last.job_id, budget))
    if first is last or first.max_tokens > shortest:
        return job._replace(
            no_use=f"n = {job.n}, k = {job.k}: job {last.job_id} reached its budget, and one"
            f" {last.max_tokens / shortest:.3g} times as large, too. No larger one is advised: look at"
            f" orch show {last.job_id} --curve, then change the learning rate or raise stop.epsilon"
        )
    fall = f", its fvu {1 - last.fvu / first.fvu:.1%} lower" if last.fvu and first.fvu else ""
    return job._replace(
        no_use=f"n = {job.n}, k = {job.k}: job {first.job_id} reached its budget, and so did job {last.job_id} with"
        f" {last.max_tokens / first.max_tokens:.3g} times as much{fall}. No larger one is advised: look at"
        f" orch show {last.job_id} --curve, then change the learning rate or raise stop.epsilon"
    )


def _past_its_plateau(job: MissingJob, unsettled: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job that goes on past its plateau, so that its limit settles; none where one such did not settle."""
    ordered = sorted(unsettled, key=lambda row: row.stop_epsilon)
    strictest, loosest = ordered[0], ordered[-1]
    if loosest.stop_epsilon < 2 * strictest.stop_epsilon:
        return job._replace(more=f" stop.epsilon={strictest.stop_epsilon / 2:g}")
    return job._replace(
        no_use=f"n = {job.n}, k = {job.k}: the limit of job {loosest.job_id} is not settled, and neither is that of job"
        f" {strictest.job_id}, stopped at epsilon {strictest.stop_epsilon:g}. A still smaller one is not advised: add"
        f" seeds or another size"
    )


def at_a_larger_rate(n: int, k: int, rows: Sequence[JobMeasurement]) -> MissingJob:
    """Return a job with a larger learning rate than any that was tried; with a smaller one where none converges."""
    here = [row for row in rows if row.k == k and row.n_latents == n]
    learning = [row for row in here if row.outcome != "not_learning"]
    rates = {rate: jobs for rate, jobs in by_rate(learning or here).items() if rate}
    if not rates:
        return MissingJob(n, k, _rate_to_try(n, k, rows))
    works = [rate for rate, jobs in rates.items() if converges(jobs)]
    some_converge = not learning or bool(works)
    if held := [row for row in here if row.state in OPEN and (row.lr is None or row.lr > max(works, default=0.0))]:
        return MissingJob(n, k, _rate_to_try(n, k, rows), held_by=_with_states(held))
    return MissingJob(n, k, f"{2 * max(rates) if some_converge else min(rates) / 2:.3g}")


def _known(sample: Sample | None) -> list[Observation]:
    return [] if sample is None else [one for one in sample.observations if not one.censored]


def _of_poorest_subject(rows: Sequence[JobMeasurement], sample: Sample) -> list[JobMeasurement]:
    """Return the jobs of the subject with the fewest sizes."""
    sizes: dict[str, set[float]] = {row.subject: set() for row in rows}
    for one in sample.observations:
        if one.subject in sizes:
            sizes[one.subject].add(one.x)
    poorest = min(sizes, key=lambda name: (len(sizes[name]), name))
    return [row for row in rows if row.subject == poorest]


def _ladder(sizes: Sequence[int], least: int) -> list[int]:
    """Return the sizes there are, continued to at least so many, by the ratio of the last two."""
    found = list(sizes) or [_SMALLEST]
    while len(found) < least:
        ratio = found[-1] / found[-2] if len(found) > 1 else 2
        found.append(max(found[-1] + 1, round(found[-1] * ratio)))
    return found


def _rate_to_try(n: int, k: int, rows: Sequence[JobMeasurement]) -> str:
    """Return the learning rate to try: the best of those that learn here or else nearby, ∝ 1/√n."""
    told = [row for row in rows if row.lr is not None and row.n_latents]
    learning = [row for row in told if row.outcome not in ("not_learning", "diverged") and not row.is_dead]

    def order(row: JobMeasurement) -> tuple[bool, bool, int, float]:
        return row.n_latents != n, row.k != k, -(row.n_latents or 0), math.inf if row.fvu is None else row.fvu

    near = min(learning or told, key=order, default=None)
    if near is None or near.lr_is_auto:
        return "auto"
    return f"{(near.lr or 0) * ((near.n_latents or n) / n) ** 0.5:.3g}"


def _grids(missing: Sequence[MissingJob]) -> list[str]:
    """Return the overrides of each command: what has one lr and one addition, as a grid of sizes and ks."""
    sizes: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for one in missing:
        sizes[one.lr, one.more, one.k].append(one.n)
    grids: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (lr, more, k), those in sizes.items():
        grids[lr, more, ",".join(map(str, those))].append(k)
    return [
        f"sae.n_latents={those} sae.k={','.join(map(str, ks))} optimizer.lr={lr}{more}"
        for (lr, more, those), ks in grids.items()
    ]


def _what_there_is(law: Law, sample: Sample | None) -> str:
    known = _known(sample)
    sizes = ", ".join(f"{n:g}" for n in sorted({one.cell[0] for one in known}))
    if law.is_over_compute:
        return f"{len(known)} bin{'' if len(known) == 1 else 's'}" + (f" of n = {sizes}" if sizes else "")
    if not known:
        return "none"
    ks = f", k = {', '.join(str(k) for k in sorted({one.k or 0 for one in known}))}" if law.is_over_k else ""
    subjects = f", of {', '.join(sorted({one.subject for one in known}))}" if law.compares_subjects else ""
    return f"n = {sizes}{ks}{subjects}"


def _what_is_missing(missing: Sequence[MissingJob]) -> str:
    return _listed("missing", [f"(n={one.n}, k={one.k}, lr={one.lr})" for one in missing if not one.held_by])


def _what_is_coming(missing: Sequence[MissingJob]) -> str:
    return _listed("there already", [f"(n={one.n}, k={one.k}: {one.held_by})" for one in missing if one.held_by])


def _listed(word: str, parts: Sequence[str]) -> str:
    more = len(parts) - _MOST_NAMED
    return f"; {word}: {', '.join(parts[:_MOST_NAMED])}{f' and {more} more' if more > 0 else ''}" if parts else ""


def _with_states(rows: Sequence[JobMeasurement]) -> str:
    return ", ".join(f"job {row.job_id} {row.state}" for row in rows)


def _what_was_left_out(excluded: Sequence[Excluded]) -> str:
    """Say why jobs were left out, the commonest reasons first."""
    if not excluded:
        return ""
    jobs: dict[str, list[int]] = defaultdict(list)
    for one in excluded:
        jobs[one.why.partition(":")[0]].append(one.job_id)
    reasons = [f"{why} ({jobs_named(ids, most=3)})" for why, ids in sorted(jobs.items(), key=lambda at: -len(at[1]))]
    return f". Left out: {'; '.join(reasons[:_MOST_REASONS])}"
