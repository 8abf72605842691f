"""Rows that come in by one statement are those that come in one by one."""

import gc
import tracemalloc

import pytest
from sqlalchemy import Engine, delete, insert, select

from orchestrator.database.engine import reading, transaction
from orchestrator.database.many_rows import among, insert_rows
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


def test_a_column_is_among_thousands_of_values(engine: Engine) -> None:
    table = Event.metadata.tables["events"]
    kinds = [*TEXTS, *(f"k{at}" for at in range(6000))]
    with transaction(engine) as session:
        insert_rows(session, table, [{"kind": kind} for kind in kinds], {"at": 1.0})
    asked = [*TEXTS[::2], *(f"k{at}" for at in range(0, 12_000, 2))]
    with reading(engine) as session:
        found = session.scalars(select(table.c.kind).where(among(session, table.c.kind, asked)))
        assert set(found) == set(asked) & set(kinds)


def test_values_are_forgotten_once_they_are_written(engine: Engine) -> None:
    table = Event.metadata.tables["events"]
    rows = [{"kind": f"{at:04}" * 250} for at in range(1000)]
    kept = []
    gc.disable()  # as good as in a command, which collects rarely: what a cycle holds, such as a statement, stays
    tracemalloc.start()
    try:
        for _ in range(12):
            with transaction(engine) as session:
                insert_rows(session, table, rows, {"at": 1.0})
                session.scalars(select(table.c.id).where(among(session, table.c.kind, [row["kind"] for row in rows])))
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept[-1] - kept[2] < 1_000_000, "a statement of one of them has a megabyte of text"


def test_what_the_database_refuses_is_a_storage_error(engine: Engine) -> None:
    table = Event.metadata.tables["events"]
    with pytest.raises(StorageError), transaction(engine) as session:
        insert_rows(session, table, [{"kind": "x", "job_id": 10**6}], {"at": 1.0})
