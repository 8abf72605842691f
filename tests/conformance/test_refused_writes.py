"""A database that may only be read, or has no room: a reason and exit code 5, and not one row of the transaction."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, make_url, text

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.database.engine import connect
from orchestrator.settings import Settings
from tests.conformance.promises import broken_promises
from tests.full_disk import files_of_at_most
from tests.queue_shorthand import claim, enqueue, point, result, state
from worker.supervisor.lease import HeldLease, Status

SWEEP = """
version: 1
name: seeds
overrides: {subject.layer: 3, sae.n_latents: 64}
sweep: [{grid: {training.seed: {range: [1, 200, 1]}}}]
"""
Refusal = Callable[[Settings], AbstractContextManager[None]]


@contextmanager
def _at_each_connection(statement: str) -> Iterator[None]:
    """Say something to SQLite at the start of every transaction of this process."""

    def say(connection: object) -> None:
        connection.exec_driver_sql(statement)  # type: ignore[attr-defined]

    event.listen(Engine, "begin", say)
    try:
        yield
    finally:
        event.remove(Engine, "begin", say)


def _sqlite_read_only(_: Settings) -> AbstractContextManager[None]:
    return _at_each_connection("PRAGMA query_only = ON")


def _sqlite_full(_: Settings) -> AbstractContextManager[None]:
    return _at_each_connection("PRAGMA max_page_count = 1")  # that is: no page more than there are


def _sqlite_no_room_for_its_log(settings: Settings) -> AbstractContextManager[None]:
    return files_of_at_most((settings.home / "orch.db").stat().st_size)


@contextmanager
def _postgres_read_only(settings: Settings) -> Iterator[None]:
    _alter(settings, "SET default_transaction_read_only = on")
    try:
        yield
    finally:
        _alter(settings, "RESET default_transaction_read_only")


@contextmanager
def _postgres_full(settings: Settings) -> Iterator[None]:
    """Refuse the fifth row of a table, with the words and the code of a full disk."""
    words = 'could not extend file "base/1/2": No space left on device'
    _say(
        settings,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT count(*) FROM jobs) > 4 THEN "
        f"RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = '{words}'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    try:
        yield
    finally:
        _say(settings, "DROP TRIGGER refuse ON jobs", "DROP FUNCTION refuse()")


def _alter(settings: Settings, what: str) -> None:
    """Change what new sessions of a database begin with."""
    url = make_url(settings.database)
    _say(settings, f'ALTER DATABASE "{url.database}" {what}')


def _say(settings: Settings, *statements: str) -> None:
    engine = connect(settings.database)
    with engine.begin() as connection:
        connection.execute(text("SET TRANSACTION READ WRITE"))
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


REFUSALS = [
    ("sqlite", _sqlite_read_only, "readonly", "may only be read"),
    ("sqlite", _sqlite_full, "disk is full", "free some space"),
    ("sqlite", _sqlite_no_room_for_its_log, "disk I/O", "full or failing"),
    ("postgresql", _postgres_read_only, "read-only", "may only be read"),
    ("postgresql", _postgres_full, "No space left", "free some space"),
]
IDS = [refusal[1].__name__.strip("_") for refusal in REFUSALS]
EACH = pytest.mark.parametrize(("settings", "refusal", "what", "hint"), REFUSALS, indirect=["settings"], ids=IDS)


@EACH
def test_f15_an_enqueue_that_is_refused(
    settings: Settings, engine: Engine, refusal: Refusal, what: str, hint: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "seeds.yaml"
    file.write_text(SWEEP)
    monkeypatch.setenv("ORCH_HOME", str(settings.home))
    monkeypatch.setenv("ORCH_DATABASE_URL", settings.database_url)
    engine.dispose()
    with refusal(settings):
        code = run(["enqueue", str(file)])
        said = capsys.readouterr()
    assert (code, said.out) == (5, "")
    assert what in said.err
    assert hint in said.err
    assert (results.sweeps(engine), sum(results.counts(engine).values())) == ([], 0)
    assert run(["enqueue", str(file)]) == 0, "as soon as it may be written again"
    assert results.counts(engine)["queued"] == 200
    assert broken_promises(engine) == []


@pytest.mark.parametrize(
    ("settings", "refusal"), [("sqlite", _sqlite_read_only), ("postgresql", _postgres_read_only)], indirect=["settings"]
)
def test_f15_a_worker_outlives_a_database_that_may_only_be_read(
    settings: Settings, engine: Engine, refusal: Refusal
) -> None:
    """What it has to write waits, in order, while its trainer trains on; then all of it is written."""
    enqueue(engine)
    lease = HeldLease(engine, claim(engine, seconds=600.0).lease, settings)
    engine.dispose()
    with refusal(settings):
        for tokens in (10, 20):
            lease.write(lambda engine, mine, tokens=tokens: queue.record(engine, mine, [point(tokens)]))  # type: ignore[misc]
        assert lease.heartbeat(Status(20)) == "run"
        lease.write(lambda engine, mine: queue.finish(engine, mine, result()))
        assert not lease.is_written
        assert results.curve(engine, 1) == []
        engine.dispose()
    assert lease.settle(patience=iter([True, False]).__next__)
    assert [found.tokens_seen for found in results.curve(engine, 1)] == [10, 20]
    assert state(engine, 1) == "succeeded"
    assert broken_promises(engine) == []
