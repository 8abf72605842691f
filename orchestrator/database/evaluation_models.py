"""The tables of evaluation: scores, and the metric families that a job has measured."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.database.table import Finite, Table


class ScoreRow(Table):
    """The value of one metric of one SAE, by one evaluation job; written once."""

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("job_id", "family", "metric", "variant"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    sae_id: Mapped[int] = mapped_column(ForeignKey("saes.id"), index=True)
    sae_attempt: Mapped[int | None]
    """Of the job that trained the SAE: whose result was measured. NULL: it was brought in."""
    family: Mapped[str]
    metric: Mapped[str]
    variant: Mapped[str]
    """Which of several definitions, subsets or baselines; empty: the plain one."""
    value: Mapped[float | None] = mapped_column(Finite)
    std_error: Mapped[float | None] = mapped_column(Finite)
    low: Mapped[float | None] = mapped_column(Finite)
    high: Mapped[float | None] = mapped_column(Finite)
    """Ends of the 90% interval."""
    n: Mapped[int | None] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]


class MeasuredFamily(Table):
    """A metric family that an evaluation job has measured, or tried to."""

    __tablename__ = "measured_families"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True, autoincrement=False)
    family: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    state: Mapped[str]
    """measured, or failed: `orch retry` tries those again."""
    error: Mapped[str | None]
    wall_seconds: Mapped[float | None] = mapped_column(Finite)
    uri: Mapped[str | None]
    """The folder of what is kept beside the scores; NULL: nothing is."""
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    measured_on: Mapped[str | None]
    """The text."""
    at: Mapped[float]
