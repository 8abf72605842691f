"""The tables of tuned lenses: the lenses themselves, and the curves of those that jobs train."""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.database.table import Finite, Table


class LensRow(Table):
    """A tuned lens: of a job, from its being queued on, or brought in."""

    __tablename__ = "lenses"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True)
    """As it was given; NULL: the job's number names it."""
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), unique=True)
    attempt: Mapped[int | None]
    """Of the job, whose result it is; NULL: there is none yet."""
    source: Mapped[str]
    """What it was trained by, or the folder it was brought in from."""
    sha256: Mapped[str | None]
    """Its content id; NULL: it is not trained yet, or diverged."""
    uri: Mapped[str | None]
    """The folder it lies in."""
    model: Mapped[str]
    revision: Mapped[str | None]
    fingerprint: Mapped[str | None]
    """sha256 of the model's config and weights; NULL: no attempt has read them yet."""
    dtype: Mapped[str]
    n_layers: Mapped[int | None]
    d_model: Mapped[int | None]
    outcome: Mapped[str | None]
    tokens_seen: Mapped[int | None] = mapped_column(BigInteger)
    wall_seconds: Mapped[float | None] = mapped_column(Finite)
    measured_on: Mapped[str | None]
    """The text."""
    measured_tokens: Mapped[int | None] = mapped_column(BigInteger)
    kl: Mapped[float | None] = mapped_column(Finite)
    """Mean over all layers but the last."""
    kls: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """KL to the final probabilities by layer, nats per token."""
    logit_lens_kls: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """The same without translators."""
    conditions: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """Condition number of I + A by layer."""
    created_at: Mapped[float]


class LensPointRow(Table):
    """One evaluation of a lens that a job trains."""

    __tablename__ = "lens_points"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    tokens_seen: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int]
    kl: Mapped[float | None] = mapped_column(Finite)
    kls: Mapped[list[Any]] = mapped_column(JSON)
    """By layer."""
    loss: Mapped[float | None] = mapped_column(Finite)
    grad_norm: Mapped[float | None] = mapped_column(Finite)
    wall_seconds: Mapped[float | None] = mapped_column(Finite)
