"""Rows of SAEs that are brought in: added, measured, removed."""

from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import SaeRow
from orchestrator.errors import NotFound, StateError
from orchestrator.saes.types import Measured, SaeState


@dataclass(frozen=True, kw_only=True)
class NewSae:
    """An SAE that is brought in."""

    name: str
    format: str
    source: str
    sha256: str
    uri: str
    facts: SaeFacts
    measured: Measured | None
    state: SaeState
    note: str


def add(engine: Engine, sae: NewSae) -> int:
    """Enter an SAE that was brought in; return its number.

    Raises:
        StateError: there is one of that name.
    """
    values = {
        **sae.facts.columns(),
        **_of_measured(sae.measured),
        **{name: getattr(sae, name) for name in ("name", "format", "source", "sha256", "uri", "state", "note")},
    }
    with transaction(engine) as session:
        _refuse_taken(session, sae.name)
        added = insert(SaeRow).values(**values, created_at=db_now()).returning(SaeRow.id)
        return int(session.execute(added).scalar_one())


def check_name(engine: Engine, name: str) -> None:
    """Refuse a name that an SAE has.

    Raises:
        StateError: there is one of that name.
    """
    with reading(engine) as session:
        _refuse_taken(session, name)


def set_measured(engine: Engine, sae_id: int, measured: Measured, *, state: SaeState, note: str) -> None:
    """Store what an SAE was measured to come to, and what follows from it."""
    values = {**_of_measured(measured), "state": state, "note": note}
    with transaction(engine) as session:
        session.execute(update(SaeRow).where(SaeRow.id == sae_id).values(**values))


def check_imported(session: Session, sae_id: int) -> None:
    """Refuse an SAE that was not brought in.

    Raises:
        NotFound: there is none of that number.
        StateError: a job trained it.
    """
    row = session.execute(select(SaeRow.job_id).where(SaeRow.id == sae_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no sae:{sae_id}", hint="orch sae list")
    if row.job_id is not None:
        raise StateError(f"sae:{sae_id} was trained by job {row.job_id}", hint=f"orch delete {row.job_id}")


def remove(session: Session, sae_id: int) -> None:
    """Take a row out of the table; scores of it must be gone: `queue.remove_sae`."""
    session.execute(delete(SaeRow).where(SaeRow.id == sae_id))


def _refuse_taken(session: Session, name: str) -> None:
    taken = session.scalar(select(SaeRow.id).where(SaeRow.name == name))
    if taken is not None:
        raise StateError(
            f"sae:{taken} is named {name!r} already", hint=f"Give another --name, or: orch sae remove {name}"
        )


def _of_measured(measured: Measured | None) -> dict[str, float | int | str | None]:
    if measured is None:
        return {}
    return {
        "fvu": measured.fvu,
        "fvu_raw": measured.fvu_raw,
        "l0": measured.l0,
        "measured_tokens": measured.tokens,
        "measured_on": measured.text,
    }
