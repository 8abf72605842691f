"""The contents of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.scaling.types import Fit, JobMeasurement, LawName, StoredFit


class SweepText(NamedTuple):
    """A sweep as it was enqueued."""

    name: str
    labels: Mapping[str, str]
    text: str
    """Its file."""
    created_at: float


class Origin(NamedTuple):
    """Where the result of one job comes from."""

    config: Mapping[str, Any]
    mlflow_run_id: str | None
    attempts: int
    commit: str | None
    """Of the code that trained it; None where no attempt has told."""
    versions: Mapping[str, str]
    subject_sha: str | None
    """Of the subject's weights."""
    flops: tuple[float, float] | None
    """Dense-equivalent and executed, up to the last point of its curve."""


class Missing(NamedTuple):
    """Why a law could not be fitted, and what would supply it."""

    why: str
    hint: str


@dataclass(frozen=True)
class Contents:
    """All that a page shows."""

    sweeps: tuple[SweepText, ...]
    rows: tuple[JobMeasurement, ...]
    origins: Mapping[int, Origin]
    """By job."""
    fits: tuple[StoredFit, ...]
    """The newest of each law."""
    missing: Mapping[LawName, Missing] = field(default_factory=dict)
    """The laws that could not be fitted."""
    database: str = ""
    at: float = 0.0
    """By the database's clock, epoch seconds."""
    version: str = ""
    """Of orch."""
    scored_on: Mapping[str, str] = field(default_factory=dict)
    """By metric family: how many tokens of which text its scores are of."""
    stale: frozenset[int] = frozenset()
    """Ids of the fits that jobs have ended after."""

    @property
    def title(self) -> str:
        """Return the names of the sweeps."""
        return ", ".join(sweep.name for sweep in self.sweeps)

    @property
    def laws(self) -> list[Fit]:
        """Return the fits without their places."""
        return [stored.fit for stored in self.fits]

    @property
    def subjects(self) -> list[str]:
        """Return the subjects, each once."""
        return list(dict.fromkeys(row.subject for row in self.rows))
