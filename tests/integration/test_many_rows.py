"""Rows that come in by one statement are those that come in one by one."""

import pytest
from sqlalchemy import Engine, delete, insert, select

from orchestrator.database.engine import reading, transaction
from orchestrator.database.many_rows import insert_rows
from orchestrator.database.models import ActivationCache, Event
from orchestrator.errors import StorageError

TEXTS = (
    "",
    "NULL",
    "null",
    'a "quoted" word',
    "back\\slash\\",
    "{a,b}",
    "a,b",
    "  spaces ",
    "two\nlines",
    "ü→𝕏",
    "'",
    "%s",
)
NUMBERS = (0.0, -0.0, 1e-300, 0.1, 1e22, 5.0, -2.5, 1e-5, 1.0, 2.0, 3.0, 4.0)


def test_values_are_those_of_single_inserts(engine: Engine) -> None:
    table = ActivationCache.metadata.tables["activation_caches"]
    rows = [
        {"key": text, "uri": text * 2, "hook": text, "tokens_id": text, "bytes": 2**40 + at, "shards": at,
         "complete": at % 2 == 0, "created_at": NUMBERS[at]}
        for at, text in enumerate(TEXTS)
    ]  # fmt: skip
    same = {"subject": 'one "for" all', "last_used_at": 7.5}
    found = []
    for put in (lambda one: insert_rows(one, table, rows, same),
                lambda one: [one.execute(insert(table).values(row | same)) for row in rows]):  # fmt: skip
        with transaction(engine) as session:
            session.execute(delete(table))
            put(session)
        with reading(engine) as session:
            found.append([tuple(row) for row in session.execute(select(table).order_by(table.c.shards))])
    assert found[0] == found[1]
    assert len(found[0]) == len(TEXTS)


def test_ids_are_in_the_order_of_the_rows_and_what_is_missing_is_null(engine: Engine) -> None:
    table = Event.metadata.tables["events"]
    rows = [{"kind": f"k{at}", "attempt": None if at % 3 else at} for at in range(3000)]
    with transaction(engine) as session:
        insert_rows(session, table, rows, {"at": 1.0})
    with reading(engine) as session:
        found = session.execute(select(table.c.kind, table.c.attempt).order_by(table.c.id)).all()
    assert [tuple(row) for row in found] == [(row["kind"], row["attempt"]) for row in rows]


def test_what_the_database_refuses_is_a_storage_error(engine: Engine) -> None:
    table = Event.metadata.tables["events"]
    with pytest.raises(StorageError), transaction(engine) as session:
        insert_rows(session, table, [{"kind": "x", "job_id": 10**6}], {"at": 1.0})
