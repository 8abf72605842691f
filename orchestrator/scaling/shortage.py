"""The error of a fit that lacks jobs: what the law needs, what there is, and what is missing."""

from collections.abc import Sequence

from orchestrator.errors import FitError
from orchestrator.scaling.findings import Excluded, LawName, Measured
from orchestrator.scaling.laws import TITLES
from orchestrator.scaling.remedies import Remedy, commands, remedies
from orchestrator.scaling.samples import Sample

_MOST_NAMED = 8
_NEEDS: dict[LawName, str] = {
    "ln": "converged jobs at 3 sizes or more",
    "lc": "curves whose lower envelope has points in 4 bins of FLOPs or more, and of 2 sizes or more",
    "lnk": "converged jobs at 3 sizes and 2 values of k or more, in 5 cells or more",
    "tn": "jobs with tokens to convergence, not mere bounds, at 3 sizes or more",
    "lr": "3 sizes or more, each with a learning rate that converges and a larger one that does not",
    "ls": "converged jobs of 2 subjects or more, at 3 sizes of each",
}


def shortage(
    law: LawName, sample: Sample | None, rows: Sequence[Measured], *, excluded: Sequence[Excluded] = ()
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


def _weakest(rows: Sequence[Measured], sample: Sample) -> list[Measured]:
    """Return the jobs of the subject with the fewest sizes."""
    sizes = {row.subject: {one.x for one in sample.observations if one.subject == row.subject} for row in rows}
    least = min(sizes, key=lambda name: (len(sizes[name]), name))
    return [row for row in rows if row.subject == least]


def _has(law: LawName, sample: Sample | None) -> str:
    known = [one for one in sample.observations if not one.censored] if sample is not None else []
    if law == "lc":
        own = ", ".join(f"{n:g}" for n in sorted({one.cell[0] for one in known}))
        return f"{len(known)} bin{'' if len(known) == 1 else 's'}{f', of n = {own}' if own else ''}"
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
