"""The error of a fit that lacks jobs: what the law needs, what there is, and what is missing."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.errors import FitError
from orchestrator.job_states import OPEN
from orchestrator.scaling.fit.eligible_jobs import is_dead
from orchestrator.scaling.fit.sample import Sample, by_rate, converges
from orchestrator.scaling.forms import TITLES
from orchestrator.scaling.types import Excluded, JobMeasurement, LawName

_SIZES = 3


class Remedy(NamedTuple):
    """One job that is missing."""

    n: int
    k: int
    lr: str
    """A number, or auto."""
    more: str = ""
    """What the command needs besides, such as a larger budget."""
    is_coming: bool = False
    """It is in the queue, or can be tried again: no command need ask for it."""


def remedies(law: LawName, sample: Sample | None, rows: Sequence[JobMeasurement]) -> list[Remedy]:
    """Return the jobs to add, as few as would do; `rows` are those that were offered for this sample."""
    if law == "ls" and all(row.subject_size is None for row in rows):  # more of the same would not tell it either
        return []
    subjects = {row.subject for row in rows}
    there = sample.observations if sample is not None and law != "lc" else ()
    known = {(int(one.x), one.k or 0) for one in there if not one.censored and one.subject in subjects}
    ks = sorted({row.k for row in rows})
    if law == "lnk" and len(ks) == 1:
        ks = [ks[0], 2 * ks[0]]
    sizes = sorted({row.n_latents for row in rows if row.n_latents})
    ladder = _ladder(sizes, _SIZES) if law != "lc" else _ladder(sizes, len(sizes) + 2)[len(sizes) :]
    find = _faster if law == "lr" else _again
    return [find(n, k, rows) for k in ks for n in ladder if (n, k) not in known]


def commands(law: LawName, rows: Sequence[JobMeasurement], wanted: Sequence[Remedy]) -> list[str]:
    """Return what to do, a line each."""
    lines = []
    if waiting := [row for row in rows if row.state in OPEN]:
        lines.append(f"{len(waiting)} of them have not ended: orch wait {rows[0].sweep}")
    if failed := [row for row in rows if row.state == "failed"]:
        lines.append(f"Try the failed again: orch retry {' '.join(str(row.job_id) for row in failed[:8])}")
    of = f" subject.model={rows[0].subject.replace('@', ' subject.revision=')}" if law == "ls" else ""
    for add in _grids([one for one in wanted if not one.is_coming]):
        lines.append(f"Supply them: orch enqueue FILE --name {rows[0].sweep} {add}{of}")
    if law == "ls" and not wanted:
        lines.append(f"Add a subject: orch enqueue FILE --name {rows[0].sweep} subject.model=ANOTHER")
    return lines or [f"Add jobs: orch enqueue FILE --name {rows[0].sweep}"]


def _ladder(sizes: Sequence[int], least: int) -> list[int]:
    """Return the sizes there are, drawn on to at least so many, by the ratio of the last two."""
    found = list(sizes) or [1024]
    while len(found) < least:
        found.append(max(found[-1] + 1, round(found[-1] * (found[-1] / found[-2] if len(found) > 1 else 2))))
    return found


def _again(n: int, k: int, rows: Sequence[JobMeasurement]) -> Remedy:
    """Return a job like the others; longer, slower or once more where one like it came to nothing."""
    here = [row for row in rows if (row.n_latents, row.k) == (n, k)]
    lr = _lr(n, k, rows)
    if any(row.state in (*OPEN, "failed") for row in here):
        return Remedy(n, k, lr, is_coming=True)
    if short := [row for row in here if row.outcome == "max_tokens"]:
        return Remedy(n, k, lr, f" training.max_tokens={2 * max(row.max_tokens for row in short)}")
    ended = [row for row in here if row.state == "succeeded"]
    rates = [row.lr for row in ended if row.lr is not None and (row.outcome == "diverged" or is_dead(row))]
    if rates:
        return Remedy(n, k, f"{min(rates) / 2:.3g}")
    # What is there already would be skipped.
    return Remedy(n, k, lr, " --allow-duplicate" if ended else "")


def _faster(n: int, k: int, rows: Sequence[JobMeasurement]) -> Remedy:
    """Return a job with a larger learning rate than any that converges; with a smaller one where none does."""
    rates = {lr: jobs for lr, jobs in by_rate(row for row in rows if row.k == k and row.n_latents == n).items() if lr}
    if not rates:
        return Remedy(n, k, _lr(n, k, rows))
    works = [lr for lr, jobs in rates.items() if converges(jobs)]
    return Remedy(n, k, f"{2 * max(rates) if works else min(rates) / 2:.3g}")


def _lr(n: int, k: int, rows: Sequence[JobMeasurement]) -> str:
    """Return the learning rate to try: as it is elsewhere, ∝ 1/√n."""
    told = [row for row in rows if row.lr is not None and row.n_latents]
    if not told or all(row.lr_is_auto for row in rows):
        return "auto"
    near = min(told, key=lambda row: (row.n_latents != n, row.k != k, -(row.n_latents or 0)))
    return f"{(near.lr or 0) * ((near.n_latents or n) / n) ** 0.5:.3g}"


def _grids(wanted: Sequence[Remedy]) -> list[str]:
    """Return the overrides of each command: what has one lr and one addition, as a grid of sizes and ks."""
    sizes: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for one in wanted:
        sizes[one.lr, one.more, one.k].append(one.n)
    grids: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (lr, more, k), those in sizes.items():
        grids[lr, more, ",".join(map(str, those))].append(k)
    return [
        f"sae.n_latents={those} sae.k={','.join(map(str, ks))} optimizer.lr={lr}{more}"
        for (lr, more, those), ks in grids.items()
    ]


_MOST_NAMED = 8
_NEEDS: dict[LawName, str] = {
    "ln": "converged jobs at 3 sizes or more",
    "lc": "curves of 3 sizes or more on their lower envelope, with points in 4 bins of FLOPs or more",
    "lnk": "converged jobs at 3 sizes and 2 values of k or more, in 5 cells or more, 2 of the k at 2 of the sizes each",
    "tn": "jobs with tokens to convergence, not mere bounds, at 3 sizes or more",
    "lr": "3 sizes or more, each with a learning rate that converges and a larger one that does not",
    "ls": "converged jobs of 2 subjects or more, at 3 sizes of each",
}


def shortage(
    law: LawName, sample: Sample | None, rows: Sequence[JobMeasurement], *, excluded: Sequence[Excluded] = ()
) -> FitError:
    """Return the error that names what a law lacks; `rows` are all jobs that were offered."""
    if not rows:
        return FitError(f"{TITLES[law]} needs {_NEEDS[law]}; there is no job", hint="Add some: orch enqueue FILE")
    inside = [row for row in rows if sample is None or sample.k in (None, row.k)]
    inside = _weakest(inside, sample) if law == "ls" and sample is not None else inside
    held = f" ({sample.group})" if sample is not None and sample.group else ""
    has = _has(law, sample)
    wanted = remedies(law, sample, inside)
    own = {row.job_id for row in inside}
    why = _commonest([one for one in (sample.excluded if sample is not None else excluded) if one.job_id in own])
    return FitError(
        f"{TITLES[law]}{held} needs {_NEEDS[law]}; it has {has}{_listed(wanted)}{why}",
        hint="\n".join(commands(law, inside, wanted)),
    )


def _weakest(rows: Sequence[JobMeasurement], sample: Sample) -> list[JobMeasurement]:
    """Return the jobs of the subject with the fewest sizes."""
    sizes = {row.subject: {one.x for one in sample.observations if one.subject == row.subject} for row in rows}
    least = min(sizes, key=lambda name: (len(sizes[name]), name))
    return [row for row in rows if row.subject == least]


def _has(law: LawName, sample: Sample | None) -> str:
    known = [one for one in sample.observations if not one.censored] if sample is not None else []
    if law == "lc":
        sizes = ", ".join(f"{n:g}" for n in sorted({one.cell[0] for one in known}))
        return f"{len(known)} bin{'' if len(known) == 1 else 's'}" + (f" of n = {sizes}" if sizes else "")
    if not known:
        return "none"
    sizes = ", ".join(f"{n:g}" for n in sorted({one.x for one in known}))
    more = f", k = {', '.join(str(k) for k in sorted({one.k or 0 for one in known}))}" if law == "lnk" else ""
    subjects = f", of {', '.join(sorted({one.subject for one in known}))}" if law == "ls" else ""
    return f"n = {sizes}{more}{subjects}"


def _listed(wanted: Sequence[Remedy]) -> str:
    if not wanted:
        return ""
    named = ", ".join(f"(n={one.n}, k={one.k}, lr={one.lr})" for one in wanted[:_MOST_NAMED])
    more = len(wanted) - _MOST_NAMED
    return f"; missing: {named}" + (f" and {more} more" if more > 0 else "")


def _commonest(excluded: Sequence[Excluded]) -> str:
    if not excluded:
        return ""
    counts: dict[str, list[int]] = {}
    for one in excluded:
        counts.setdefault(one.why.partition(":")[0], []).append(one.job_id)
    told = [f"{why} ({_jobs(ids)})" for why, ids in sorted(counts.items(), key=lambda pair: -len(pair[1]))]
    return f". Left out: {'; '.join(told[:4])}"


def _jobs(ids: Sequence[int]) -> str:
    named = ", ".join(map(str, ids[:3]))
    return f"job{'' if len(ids) == 1 else 's'} {named}" + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
