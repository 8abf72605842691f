"""How far the lenses are that jobs train: what the table of lenses says of one only once its training has ended."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, select

from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, LeaseRow
from orchestrator.lenses.lens_rows import LensEntry, curve, found_by_attempt


def so_far(engine: Engine, entries: Sequence[LensEntry]) -> list[LensEntry]:
    """Return lenses, those whose jobs have no result as far as they are.

    They get the tokens they have seen, the KLs of their last point, and what the newest attempt that reported anything
    has found: layers, the held-out text, the KLs of the logit lens.

    Raises:
        StorageError: the database did not answer.
    """
    unended = [entry.job_id for entry in entries if entry.job_id is not None and not entry.outcome]
    attempts = select(Attempt.job_id, Attempt.facts).where(Attempt.job_id.in_(unended)).order_by(Attempt.attempt)
    with reading(engine) as session:
        leases = session.execute(select(LeaseRow.job_id, LeaseRow.tokens_seen))
        held = {row.job_id: row.tokens_seen for row in leases}
        found = {job_id: facts for job_id, facts in session.execute(attempts) if facts} if unended else {}
    return [
        _as_far(engine, entry, held, found.get(entry.job_id)) if entry.job_id in unended else entry for entry in entries
    ]


def _as_far(engine: Engine, entry: LensEntry, held: dict[int, int], facts: dict[str, Any] | None) -> LensEntry:
    assert entry.job_id is not None, "it is of a job"
    points, tokens = curve(engine, entry.job_id), held.get(entry.job_id, 0)
    known = replace(entry, **found_by_attempt(facts)) if facts else entry
    if not points:
        return replace(known, tokens_seen=tokens or None)
    last = points[-1]
    return replace(known, tokens_seen=max(tokens, last.tokens_seen), kl=last.kl, kls=[*last.kls])
