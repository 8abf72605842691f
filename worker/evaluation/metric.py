"""What a metric family is: it measures all SAEs of one place together, and yields the scores of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.sae.inference import InferenceSae

if TYPE_CHECKING:
    from torch import Tensor

    from worker.evaluation.context import EvaluationContext


@dataclass(frozen=True, eq=False)
class Draws:
    """What a score is in each of some draws of the text; two are equal where all of their values are."""

    values: "Tensor"
    """(n_resamples,)."""
    drawn_id: int
    """Names the draws: scores with the same one are of the same draws."""

    def __eq__(self, other: object) -> bool:
        """Compare the values as one: a score is compared whole."""
        if not isinstance(other, Draws) or self.drawn_id != other.drawn_id:
            return False
        mine, theirs = self.values.nan_to_num(nan=float("inf")), other.values.nan_to_num(nan=float("inf"))
        return bool(mine.equal(theirs))  # a draw in which nothing counts is equal to itself

    def __hash__(self) -> int:
        """Return the hash of what names the draws."""
        return hash(self.drawn_id)


class Score(NamedTuple):
    """The value of one metric for one SAE, and how sure it is."""

    metric: str
    """Such as delta_ce."""
    value: float
    variant: str = ""
    """Which of several definitions, subsets or baselines: `first`, `k=2`, `channels`. Empty: the plain one."""
    std_error: float | None = None
    low: float | None = None
    high: float | None = None
    """Ends of the 90% interval."""
    n: int | None = None
    """How many tokens, examples, pairs or latents it is of; `details` says of what where that is not plain."""
    details: Mapping[str, Any] = {}
    """Small things that belong to it: bins of a histogram, the chosen latent. Large ones go into `Measured.files`."""
    draws: Draws | None = None
    """What the interval is of, where scores of other places may share it; not stored."""

    def told(self) -> dict[str, Any]:
        """Return what is stored of it, by name: of no token, example or latent there is no value."""
        values = {name: value for name, value in self._asdict().items() if name != "draws"}
        return values if self.n != 0 else values | dict.fromkeys(("value", "std_error", "low", "high"))


@dataclass(frozen=True)
class SubjectSae:
    """An SAE that is evaluated."""

    job_id: int
    """Of the evaluation job."""
    label: str
    """The shortest selector that means it."""
    sae: InferenceSae


@dataclass(frozen=True)
class Measured:
    """What a metric family found of one SAE."""

    job_id: int
    scores: Sequence[Score]
    files: Mapping[str, Any] = field(default_factory=dict)
    """By file name, what is kept beside the scores as JSON: tries, per-latent statistics."""


@dataclass(frozen=True)
class NotMeasured:
    """Why a metric family has no scores of one SAE; the others have theirs."""

    job_id: int
    error: Exception


MetricFamily = Callable[[Sequence[SubjectSae], "EvaluationContext", Any], Iterator[Measured | NotMeasured]]
"""What measures a family of some SAEs, with a context and the family's options; it yields what is found of each SAE as
soon as it is known. All SAEs read the same place of the same model and text.

It calls `context.progress` at least once a second. What belongs to model and text alone is taken from `context.store`.
An error that is raised is that of every SAE that has not been yielded.
"""
LayersFamily = Callable[[Sequence[SubjectSae], Sequence["EvaluationContext"], Any], Iterator[Measured | NotMeasured]]
"""The same of what is asked of all layers together: it takes the context of each layer, in their order."""
