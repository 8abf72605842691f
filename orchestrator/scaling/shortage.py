"""What is missing for a fit: which (n, k, lr), and the command that would supply it."""

from collections.abc import Iterable, Sequence

from orchestrator.errors import FitError
from orchestrator.scaling.findings import Excluded, LawName, Measured
from orchestrator.scaling.laws import TITLES
from orchestrator.scaling.samples import Sample

_NEEDS: dict[LawName, str] = {
    "ln": "converged jobs at 3 sizes or more",
    "lc": "curves whose lower envelope has points in 4 bins of FLOPs or more, from jobs of any size",
    "lnk": "converged jobs at 3 sizes and 2 values of k or more, in 5 cells or more",
    "tn": "jobs with tokens to convergence, not mere bounds, at 3 sizes or more",
    "lr": "3 sizes or more, each with a learning rate that converges and a larger one that does not",
    "ls": "converged jobs of 2 subjects or more, at 3 sizes of each",
}
_SIZES = 3
_OPEN = ("queued", "running", "paused")


def shortage(law: LawName, sample: Sample | None, rows: Sequence[Measured]) -> FitError:
    """Return the error that names what a law lacks; `rows` are all jobs that were offered."""
    if not rows:
        return FitError(f"{TITLES[law]} needs {_NEEDS[law]}; there is no job", hint="Add some: orch enqueue FILE")
    inside = [row for row in rows if sample is None or row.k in _ks(sample, rows)]
    held = f" ({sample.group})" if sample is not None and sample.group else ""
    has = _has(law, sample)
    wanted = _wanted(law, sample, inside)
    missing = "; missing: " + ", ".join(f"(n={n}, k={k}, lr={lr})" for n, k, lr in wanted) if wanted else ""
    why = _commonest(sample.excluded if sample is not None else ())
    return FitError(
        f"{TITLES[law]}{held} needs {_NEEDS[law]}; it has {has}{missing}{why}",
        hint="\n".join(_ways(law, inside, wanted)),
    )


def _ks(sample: Sample, rows: Sequence[Measured]) -> set[int]:
    return {one.k for one in sample.observations if one.k is not None} or {row.k for row in rows}


def _has(law: LawName, sample: Sample | None) -> str:
    known = [one for one in sample.observations if not one.censored] if sample is not None else []
    if law == "lc":
        return f"{len(known)} bins"
    if not known:
        return "none"
    sizes = ", ".join(f"{n:g}" for n in sorted({one.x for one in known}))
    more = f", k = {', '.join(str(k) for k in sorted({one.k or 0 for one in known}))}" if law == "lnk" else ""
    subjects = f", of {', '.join(sorted({one.subject for one in known}))}" if law == "ls" else ""
    return f"n = {sizes}{more}{subjects}"


def _wanted(law: LawName, sample: Sample | None, rows: Sequence[Measured]) -> list[tuple[int, int, str]]:
    """Return the (n, k, lr) to add, as few as would do."""
    known = (
        {(int(one.x), one.k or 0) for one in sample.observations if not one.censored} if sample is not None else set()
    )
    if law == "lc":
        known = set()
    ks = sorted({row.k for row in rows})
    if law == "lnk" and len(ks) == 1:
        ks = [ks[0], 2 * ks[0]]
    sizes = sorted({row.n_latents for row in rows if row.n_latents})
    ladder = _ladder(sizes)
    if law == "lr":
        return [
            (n, k, f"{2 * top:.3g}") for k in ks for n, top in _tops(rows, k, ladder).items() if (n, k) not in known
        ]
    return [
        (n, k, _lr(n, k, rows)) for k in ks for n in ladder
        if (n, k) not in known and sum(1 for at, other in known if other == k) < max(_SIZES, len(ladder))
    ]  # fmt: skip


def _ladder(sizes: Sequence[int]) -> list[int]:
    """Return the sizes there are, drawn on to as many as a law needs, by the ratio of the last two."""
    found = list(sizes) or [1024]
    while len(found) < _SIZES:
        found.append(max(found[-1] + 1, round(found[-1] * (found[-1] / found[-2] if len(found) > 1 else 2))))
    return found


def _tops(rows: Sequence[Measured], k: int, ladder: Sequence[int]) -> dict[int, float]:
    """Return the largest learning rate tried at each size."""
    tried = [(row.n_latents, row.lr) for row in rows if row.k == k and row.n_latents and row.lr]
    if not tried:
        return {}
    near = min(tried)
    return {n: max([lr for at, lr in tried if at == n] or [near[1] * (near[0] / n) ** 0.5]) for n in ladder}


def _lr(n: int, k: int, rows: Sequence[Measured]) -> str:
    """Return the learning rate to try: as it is elsewhere, ∝ 1/√n."""
    told = [row for row in rows if row.lr is not None and row.n_latents]
    if not told or all(row.lr_is_auto for row in rows):
        return "auto"
    near = min(told, key=lambda row: (row.n_latents != n, row.k != k, -(row.n_latents or 0)))
    return f"{(near.lr or 0) * ((near.n_latents or n) / n) ** 0.5:.3g}"


def _ways(law: LawName, rows: Sequence[Measured], wanted: Sequence[tuple[int, int, str]]) -> list[str]:
    lines = []
    if waiting := [row for row in rows if row.state in _OPEN]:
        lines.append(f"{len(waiting)} of them have not ended: orch wait {_sweep(waiting)}")
    if failed := [row for row in rows if row.state == "failed"]:
        lines.append(f"Try the failed again: orch retry {' '.join(str(row.job_id) for row in failed[:8])}")
    short = {(row.n_latents, row.k) for row in rows if row.outcome == "max_tokens"}
    budget = 2 * max((row.max_tokens for row in rows if row.outcome == "max_tokens"), default=0)
    for (lr, k, longer), sizes in _by_line(wanted, short if law in ("ln", "lnk", "ls", "tn") else set()).items():
        more = f" training.max_tokens={budget}" if longer and budget else ""
        add = f"sae.n_latents={','.join(map(str, sizes))} sae.k={k} optimizer.lr={lr}{more}"
        lines.append(f"Supply them: orch enqueue FILE --name {_sweep(rows)} {add}")
    if law == "ls" and len({row.subject for row in rows}) < 2:
        lines.append(f"Add a subject: orch enqueue FILE --name {_sweep(rows)} subject.model=ANOTHER")
    return lines or [f"Add jobs: orch enqueue FILE --name {_sweep(rows)}"]


def _by_line(
    wanted: Iterable[tuple[int, int, str]], short: set[tuple[int | None, int]]
) -> dict[tuple[str, int, bool], list[int]]:
    """Return the sizes that one command can ask for: those of one lr, one k and one budget."""
    found: dict[tuple[str, int, bool], list[int]] = {}
    for n, k, lr in wanted:
        found.setdefault((lr, k, (n, k) in short), []).append(n)
    return found


def _sweep(rows: Sequence[Measured]) -> str:
    return rows[0].sweep


def _commonest(excluded: Sequence[Excluded]) -> str:
    if not excluded:
        return ""
    counts: dict[str, list[int]] = {}
    for one in excluded:
        counts.setdefault(one.why.partition(":")[0], []).append(one.job_id)
    told = [f"{len(ids)} {why} (job {ids[0]}{', …' if len(ids) > 1 else ''})" for why, ids in counts.items()]
    return f". Left out: {'; '.join(sorted(told)[:4])}"
