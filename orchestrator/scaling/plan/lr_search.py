"""The search for the learning rate of each (n, k): which rates to try next, which jobs to cancel, and what is known.

A pure function of the jobs. It goes from `lr: auto` by factors of two, until the best rate has a worse neighbour on
both sides and the factor of two above the largest rate that converges does not converge. A job that cannot become the
best any more is cancelled, unless its rate is above the largest that converges: whether it does is then the question.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from orchestrator.formatting import rounded
from orchestrator.job_states import FREED
from orchestrator.scaling.types import JobMeasurement

TrialOutcome = Literal["waiting", "converged", "unconverged", "diverged", "given up", "failed"]
Size = tuple[int, int]
"""n_latents and k."""

MOST_RATES = 16
"""Per (n, k): a search that takes more does not converge."""
_FACTOR = 2.0
_NEAR = 2.1
"""A rate within this factor is a neighbour: rates were rounded, and another sweep's may not lie on powers of two."""
_RUNGS = (8, 4, 2)
"""Jobs are compared at these parts of their budget."""
_RATE_DIGITS = 4


class Rate(NamedTuple):
    """A job to enqueue."""

    n_latents: int
    k: int
    lr: float | None
    """None = auto."""


class Tried(NamedTuple):
    """One rate, and what came of it."""

    lr: float | None
    """None: auto, and no attempt has told what it comes to."""
    job_id: int
    outcome: TrialOutcome
    fvu: float | None
    """The last of its curve."""


class Found(NamedTuple):
    """What is known of one (n, k)."""

    largest_converging: float | None
    best: float | None
    """The rate of the lowest fvu among the jobs that ended by themselves."""
    tried: tuple[Tried, ...]
    """By rate."""
    is_bracketed: bool
    trouble: str
    """Why the search cannot go on; empty: it can, or it has ended."""


class Step(NamedTuple):
    """What to do now; nothing where all is known, or has to be waited for."""

    enqueue: tuple[Rate, ...]
    cancel: tuple[int, ...]
    """Jobs that cannot become the best of their (n, k)."""
    found: dict[Size, Found]

    @property
    def is_done(self) -> bool:
        """Say whether every (n, k) is bracketed or cannot be."""
        return all(found.is_bracketed or found.trouble for found in self.found.values())


def next_step(rows: Sequence[JobMeasurement], *, sizes: Iterable[Size] = ()) -> Step:
    """Return what to enqueue and to cancel next, for the (n, k) of the rows and for further `sizes`.

    Of several seeds at one (n, k) the lowest is searched. A job that somebody cancelled counts as given up, and no rate
    that was ever tried is proposed again.
    """
    groups: defaultdict[Size, list[JobMeasurement]] = defaultdict(list, {size: [] for size in sizes})
    for row in rows:
        if row.n_latents is not None:
            groups[row.n_latents, row.k].append(row)
    enqueue: list[Rate] = []
    cancel: list[int] = []
    found: dict[Size, Found] = {}
    for size in sorted(groups):
        mine = _one_seed(groups[size])
        found[size] = _known(mine)
        cancel += [row.job_id for row in mine if (row.lr or 0) < _settled(found[size]) and _is_beaten(row, mine)]
        if not found[size].is_bracketed and not found[size].trouble:
            enqueue += [Rate(*size, lr) for lr in _missing(found[size])]
    return Step(tuple(enqueue), tuple(sorted(cancel)), found)


def _one_seed(rows: list[JobMeasurement]) -> list[JobMeasurement]:
    """Return one job per rate of the lowest seed: of several, the newest that neither failed nor was cancelled."""
    lowest = min((row.seed for row in rows), default=0)
    chosen: dict[float | None, JobMeasurement] = {}
    for row in sorted(rows, key=lambda row: (row.state not in FREED, row.job_id)):
        if row.seed == lowest:
            chosen[row.lr] = row
    return sorted(chosen.values(), key=lambda row: (row.lr is None, row.lr or 0.0))


def _known(rows: Sequence[JobMeasurement]) -> Found:
    tried = tuple(Tried(row.lr, row.job_id, _outcome(row), row.fvu) for row in rows)
    ended = [one for one in tried if one.outcome in {"converged", "unconverged"} and one.lr and _is_loss(one.fvu)]
    best = min(ended, key=lambda one: (one.fvu, one.lr)).lr if ended else None
    largest = max((one.lr for one in ended if one.lr and one.outcome == "converged"), default=None)
    found = Found(largest, best, tried, False, "")
    trouble = _trouble(found)
    return found._replace(is_bracketed=not trouble and _is_bracketed(found), trouble=trouble)


def _outcome(row: JobMeasurement) -> TrialOutcome:
    if row.outcome == "diverged":
        return "diverged"
    if row.state == "succeeded":
        return "converged" if row.outcome == "converged" and (row.fvu or 1.0) < 1 else "unconverged"
    ended: dict[str, TrialOutcome] = {"failed": "failed", "cancelled": "given up"}
    return ended.get(row.state, "waiting")


def _is_bracketed(found: Found) -> bool:
    ended = [one.lr for one in found.tried if one.lr]
    settled = found.best is not None and not _waits(found)
    return settled and all(_holds(ended, place) for place in _places(found))


def _missing(found: Found) -> Sequence[float | None]:
    """Return the rates to try next; none while the outcome of a running one may change them."""
    if not found.tried:
        return [None]
    tried = [one.lr for one in found.tried if one.lr]
    return sorted(rounded(place.rate, _RATE_DIGITS) for place in _places(found) if not _holds(tried, place))


def _waits(found: Found) -> bool:
    return any(one.outcome == "waiting" for one in found.tried)


class _Place(NamedTuple):
    """Where a rate must have been tried."""

    rate: float
    low: float
    high: float


def _places(found: Found) -> list[_Place]:
    """Return where rates are needed: on both sides of the best, and above the largest that converges.

    At first, that is around the one rate that runs; while some run, only above the largest of all; where none has ended
    with a loss, below them all.
    """
    lrs = [one.lr for one in found.tried if one.lr]
    largest = [_above(found.largest_converging)] if found.largest_converging else []
    if not lrs:
        return []
    if _waits(found):
        is_first = len(found.tried) == 1
        return [_below(lrs[0]), _above(lrs[0])] if is_first else [at for at in largest if lrs[-1] <= at.low]
    if found.best is None:
        return [_below(lrs[0])]
    return [_below(found.best), _above(found.best), *(at for at in largest if found.largest_converging != found.best)]


def _below(lr: float) -> _Place:
    return _Place(lr / _FACTOR, lr / _NEAR, lr)


def _above(lr: float) -> _Place:
    return _Place(lr * _FACTOR, lr, lr * _NEAR)


def _holds(lrs: Sequence[float], place: _Place) -> bool:
    edge = 1e-6 * place.rate  # the bounds of a place are rates themselves, and do not count
    return any(place.low + edge < lr < place.high - edge for lr in lrs)


def _trouble(found: Found) -> str:
    """Say what only a person can resolve: a rate that is needed failed, or the search took too many rates."""
    if _waits(found):
        return ""
    for one in found.tried:
        is_needed = one.lr is None or found.best is None or any(_holds([one.lr], place) for place in _places(found))
        if one.outcome == "failed" and is_needed:
            return f"job {one.job_id} failed: orch retry {one.job_id}"
        if one.outcome == "given up" and one.lr is None:
            return f"job {one.job_id} was cancelled before it told its rate: orch retry {one.job_id}"
    return "" if len(found.tried) < MOST_RATES or _is_bracketed(found) else f"not bracketed within {MOST_RATES} rates"


def _settled(found: Found) -> float:
    """Return the rate below which it is settled what converges: the largest that did, else the largest that ended."""
    ended = [one.lr for one in found.tried if one.lr and one.outcome == "unconverged"]
    return found.largest_converging or max(ended, default=0.0)


def _is_beaten(row: JobMeasurement, rows: Sequence[JobMeasurement]) -> bool:
    """Say whether a job that waits or runs cannot reach the fvu that another rate has reached already.

    Its curve is extrapolated from the last rung to its budget, falling with each doubling as in the one before: a power
    law without the floor that every curve has, so it errs to the job's advantage.
    """
    if row.state not in {"running", "queued"} or not row.curve:
        return False
    rung = next((row.max_tokens / part for part in reversed(_RUNGS) if row.tokens_seen >= row.max_tokens / part), None)
    now, before = (_loss_at(row, rung), _loss_at(row, rung / 2)) if rung else (None, None)
    if rung is None or now is None or before is None:
        return False
    extrapolated = now * min(1.0, now / before) ** math.log2(row.max_tokens / rung)
    rivals = [other.fvu for other in rows if other is not row and other.outcome != "diverged" and _is_loss(other.fvu)]
    return any(fvu is not None and fvu < extrapolated for fvu in rivals)


def _loss_at(row: JobMeasurement, tokens: float) -> float | None:
    """Return a curve's loss at so many tokens, interpolated in log tokens; None where it does not reach."""
    known = [(point.tokens_seen, point.fvu) for point in row.curve if _is_loss(point.fvu)]
    for (left, high), (right, low) in pairwise(known):
        if left <= tokens <= right:
            return high + (low - high) * math.log(tokens / left) / math.log(right / left)
    return None


def _is_loss(fvu: float | None) -> bool:
    return fvu is not None and math.isfinite(fvu) and fvu > 0
