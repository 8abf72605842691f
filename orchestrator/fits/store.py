"""Fits in the database. A newer one to the same kind of jobs supersedes one, and only a person removes any.

The kind is the law, the sweeps, the group, and what all jobs of a fit share: subject, hook point, text, activation.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, delete, insert, select, text, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import FitRow
from orchestrator.errors import NotFound
from orchestrator.formatting import Interval
from orchestrator.scaling.types import Excluded, Fit, LawName, Residual, Score, StoredFit
from orchestrator.versions import git_commit, versions

_SHARED = ("hook", "data", "activation")
"""What else all jobs of a fit share, by the field of a fit; a fit of an earlier version may not say."""
_LOCK = 0x6F726368_66
"""Whoever stores fits holds this advisory lock until the commit, so that one of two at once is the newer."""


def save(engine: Engine, fits: Sequence[Fit]) -> list[int]:
    """Store fits, each with the version and commit that made it, and return their ids.

    Raises:
        StorageError: the database did not answer; nothing was stored.
    """
    origin = {"version": versions().get("orch", "unknown"), "commit": git_commit()}
    with transaction(engine) as session:
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time anyway
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        return [_insert(session, fit, origin) for fit in fits]


def newest(engine: Engine, *, sweep: str, law: LawName | None = None) -> list[StoredFit]:
    """Return the fits to jobs of a sweep that no newer one supersedes, by law and group.

    Raises:
        StorageError: the database did not answer.
    """
    found = _read(engine, sweep, law, superseded=False)
    return sorted(found, key=lambda one: (one.fit.law, one.fit.sweeps, len(one.fit.group), one.fit.group))


def history(engine: Engine, *, sweep: str, law: LawName | None = None) -> list[StoredFit]:
    """Return every fit to jobs of a sweep, the newest first.

    Raises:
        StorageError: the database did not answer.
    """
    return _read(engine, sweep, law, superseded=True)


def shipped(engine: Engine, fit_id: int, *, mlflow_run_id: str) -> None:
    """Note in which MLflow run a fit is shown.

    Raises:
        NotFound: there is no such fit.
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        mine = update(FitRow).where(FitRow.id == fit_id).values(mlflow_run_id=mlflow_run_id)
        if session.scalar(mine.returning(FitRow.id)) is None:
            raise NotFound(f"there is no fit {fit_id}")


def remove(engine: Engine, fit_ids: Sequence[int]) -> list[StoredFit]:
    """Delete fits and return them, the newest first; what one of them had superseded is as if it had never been made.

    Raises:
        NotFound: there is no such fit; nothing is deleted.
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        rows = list(session.scalars(select(FitRow).where(FitRow.id.in_(fit_ids)).order_by(FitRow.id.desc())))
        if unknown := sorted(set(fit_ids) - {row.id for row in rows}):
            raise NotFound(
                f"there is no fit {', '.join(map(str, unknown))}", hint="The fits of a sweep: orch fit SWEEP"
            )
        removed = [_fit(row) for row in rows]
        for stored in removed:  # the newest first: what superseded an older one of them stays
            older = update(FitRow).where(FitRow.superseded_by == stored.id)
            successor = select(FitRow.superseded_by).where(FitRow.id == stored.id).scalar_subquery()
            session.execute(older.values(superseded_by=successor))
        session.execute(delete(FitRow).where(FitRow.id.in_(fit_ids)))
    return removed


def _insert(session: Session, fit: Fit, origin: dict[str, Any]) -> int:
    key = {"law": fit.law, "sweeps": _names(fit.sweeps), "subject": fit.subject}
    same = [getattr(FitRow, name) == value for name, value in key.items()]
    current = session.scalars(select(FitRow).where(*same, FitRow.superseded_by.is_(None)))
    old = [row.id for row in current if _is_of_the_same(_unpacked(row.payload), fit)]
    values = key | origin | {"group": fit.group, "created_at": db_now(), "payload": _payload(fit)}
    fit_id = int(session.execute(insert(FitRow).values(**values).returning(FitRow.id)).scalar_one())
    session.execute(update(FitRow).where(FitRow.id.in_(old)).values(superseded_by=fit_id))
    return fit_id


def _is_of_the_same(old: Fit, new: Fit) -> bool:
    """Say whether two fits of one law, sweeps and subject are of one group and hook point, text and activation.

    What an earlier version did not store is taken to be what the new fit says.
    """
    return old.group == new.group and all(getattr(old, name) in ("", getattr(new, name)) for name in _SHARED)


def _read(engine: Engine, sweep: str, law: LawName | None, *, superseded: bool) -> list[StoredFit]:
    query = select(FitRow).order_by(FitRow.id.desc())
    query = query if superseded else query.where(FitRow.superseded_by.is_(None))
    query = query if law is None else query.where(FitRow.law == law)
    named = query.where(FitRow.sweeps.contains(json.dumps(sweep), autoescape=True))
    with reading(engine) as session:
        return [_fit(row) for row in session.scalars(named) if sweep in json.loads(row.sweeps)]


def _names(sweeps: Sequence[str]) -> str:
    return json.dumps(sorted(set(sweeps)))


def _payload(fit: Fit) -> dict[str, Any]:
    values = fit.values()
    # By name, for readers other than this program; in a list, because JSON objects are not ordered.
    values["coefficients"] = [{"name": name} | one._asdict() for name, one in fit.coefficients.items()]
    return values


def _fit(row: FitRow) -> StoredFit:
    return StoredFit(
        id=row.id, created_at=row.created_at, superseded_by=row.superseded_by, version=row.version, commit=row.commit,
        mlflow_run_id=row.mlflow_run_id, fit=_unpacked(row.payload),
    )  # fmt: skip


def _unpacked(values: dict[str, Any]) -> Fit:
    coefficients = {one["name"]: Interval(one["value"], one["low"], one["high"]) for one in values["coefficients"]}
    between = values["irreducible"]
    return Fit(
        **_with_places(values) | {
            "sweeps": tuple(values["sweeps"]),
            "coefficients": coefficients,
            "scores": tuple(Score(**one) for one in values["scores"]),
            "irreducible": None if between is None else (between[0], between[1]),
            "residuals": tuple(Residual(**one | {"jobs": tuple(one["jobs"])}) for one in values["residuals"]),
            "excluded": tuple(Excluded(**one) for one in values["excluded"]),
            "holdout_jobs": tuple(values["holdout_jobs"]),
            "draws": tuple(tuple(draw) for draw in values["draws"]),
            "notes": tuple(values["notes"]),
        }
    )  # fmt: skip


def _with_places(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a fit; earlier versions named the hook point, text and activation in its group."""
    if "hook" in values:
        return values
    group, *chosen = re.split(rf"(?:^|, )({'|'.join(_SHARED)})=", values["group"])
    return values | {"group": group} | dict(zip(chosen[::2], chosen[1::2], strict=True))
