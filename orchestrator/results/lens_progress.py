"""How far the lenses are that jobs train: what the table of lenses says of one only once its training has ended."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Engine

from orchestrator import lenses
from orchestrator.lenses import LensEntry
from orchestrator.results.job_rows import jobs


def so_far(engine: Engine, entries: Sequence[LensEntry]) -> list[LensEntry]:
    """Return lenses, those whose jobs have no result with the tokens they have seen and the KLs of their last point.

    Raises:
        StorageError: the database did not answer.
    """
    ids = [entry.job_id for entry in entries if entry.job_id is not None and entry.outcome is None]
    rows = {row.id: row for row in jobs(engine, ids=ids, kind="lens")} if ids else {}
    found = []
    for entry in entries:
        row = rows.get(entry.job_id or 0)
        points = [] if row is None else lenses.curve(engine, row.id)
        if row is not None and (row.tokens_seen or points):
            last = points[-1] if points else None
            kl, kls, at = (None, None, 0) if last is None else (last.kl, [*last.kls], last.tokens_seen)
            found.append(replace(entry, tokens_seen=max(row.tokens_seen, at), kl=kl, kls=kls))
        else:
            found.append(entry)
    return found
