"""How far the lenses are that jobs train: what the table of lenses says of one only once its training has ended."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Engine, select

from orchestrator.database.engine import reading
from orchestrator.database.models import LeaseRow
from orchestrator.lenses.lens_rows import LensEntry, curve


def so_far(engine: Engine, entries: Sequence[LensEntry]) -> list[LensEntry]:
    """Return lenses, those whose jobs have no result with the tokens they have seen and the KLs of their last point.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        leases = session.execute(select(LeaseRow.job_id, LeaseRow.tokens_seen))
        held = {row.job_id: row.tokens_seen for row in leases}
    return [entry if entry.job_id is None or entry.outcome else _with_last(engine, entry, held) for entry in entries]


def _with_last(engine: Engine, entry: LensEntry, held: dict[int, int]) -> LensEntry:
    assert entry.job_id is not None, "it is of a job"
    points, tokens = curve(engine, entry.job_id), held.get(entry.job_id, 0)
    if not points:
        return replace(entry, tokens_seen=tokens or None)
    last = points[-1]
    return replace(entry, tokens_seen=max(tokens, last.tokens_seen), kl=last.kl, kls=[*last.kls])
