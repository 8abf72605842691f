"""The schema: made once, checked against the models, refused when it lags; on both databases."""

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, inspect, select, text, update

from orchestrator import lenses, queue, results
from orchestrator.config.validation import parse
from orchestrator.database.engine import connect, db_now, reading, transaction
from orchestrator.database.models import Job, Table, declare_partial_indexes
from orchestrator.database.schema import HEAD, VERSION_TABLE, current, migration_config, open_database, upgrade
from orchestrator.errors import ConfigError, StorageError
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests.evaluation_shorthand import evaluate, run, scores, take, train
from tests.lens_shorthand import queue_lens, take_lens, train_lens
from tests.queue_shorthand import claim, enqueue, sweep

TABLES = {
    "sweeps", "jobs", "attempts", "leases", "curve_points", "results", "convergence", "checkpoints", "events",
    "activation_caches", "workers", "queue_pause", "fits", "saes", "scores",
    "measured_families", "lenses", "lens_points",
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return Settings(home=tmp_path / "a home 100%")
    new: Callable[[bool], str] = request.getfixturevalue("new_postgres")
    return Settings(home=tmp_path, database_url=new(False))


def test_head_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(migration_config()).get_heads() == [HEAD]


def test_migrations_print_where_the_program_prints_now(capsys: pytest.CaptureFixture[str]) -> None:
    """Alembic keeps the output that was there when it was loaded: that of a test that ended, closed since."""
    assert migration_config().stdout is sys.stdout


def test_models_and_migrations_agree(settings: Settings, engine: Engine) -> None:
    from alembic import command

    with engine.execution_options(orch_write=True).connect() as connection:
        command.check(migration_config(connection))


def test_the_ddl_is_that_of_the_models(tmp_path: Path, sqlite_settings: Settings) -> None:
    """`alembic check` compares neither conditions nor directions of indexes, nor check constraints: the text does."""
    declare_partial_indexes()
    made = connect(f"sqlite:///{tmp_path / 'made.db'}")
    Table.metadata.create_all(made)
    made.dispose()
    assert _ddl(tmp_path / "made.db") == _ddl(sqlite_settings.home / "orch.db")


def _ddl(path: Path) -> dict[str, list[str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    # A column that a later migration added stands on the line of the one before it.
    parted = {name: re.sub(r", (?=\w+ [A-Z]+)", ",\n", sql) for name, sql in rows}
    lines = {name: [line.strip().rstrip(",") for line in sql.splitlines()] for name, sql in parted.items()}
    return {name: sorted(line for line in sql if line) for name, sql in lines.items() if name != VERSION_TABLE}


def test_postgres_has_the_partial_index_and_the_check(postgres_settings: Settings) -> None:
    engine = open_database(postgres_settings)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT indexname, indexdef FROM pg_indexes"))
        found = {row.indexname: row.indexdef for row in rows}
        checks = [c["name"] for c in inspect(connection).get_check_constraints("jobs")]
    engine.dispose()
    assert "UNIQUE" in found["uq_jobs_live_config"]
    assert "WHERE (state <> ALL" in found["uq_jobs_live_config"]
    assert "priority DESC" in found["ix_jobs_claim"]
    assert checks == ["ck_jobs_finished"]


def test_upgrade_of_an_empty_database(bare: Settings) -> None:
    assert current(bare) is None
    assert upgrade(bare) == HEAD
    assert upgrade(bare) == HEAD
    assert current(bare) == HEAD
    engine = open_database(bare)
    with engine.connect() as connection:
        assert {*TABLES, VERSION_TABLE} == set(inspect(connection).get_table_names())
    engine.dispose()


def test_downgrade_leaves_nothing(bare: Settings) -> None:
    from alembic import command

    upgrade(bare)
    engine = connect(bare.database)
    with engine.execution_options(orch_write=True).begin() as connection:
        command.downgrade(migration_config(connection), "base")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == [VERSION_TABLE]
    engine.dispose()


def test_the_rates_that_an_earlier_version_wrote_over_are_asked_for_again(bare: Settings) -> None:
    from alembic import command

    engine = open_database(bare) if bare.embedded else _upgraded(bare)
    queue.enqueue(engine, Sweep("s", tuple(parse({"optimizer": {"lr": lr}}) for lr in ("auto", 0.5))))
    for _ in range(2):
        lease = claim(engine).lease
        queue.begin(engine, lease, {"lr": 0.1 if lease.job_id == 1 else 0.5}, 0)

    def migrate(verb: Callable[..., None], revision: str) -> list[float | None]:
        with engine.execution_options(orch_write=True).begin() as connection:
            verb(migration_config(connection), revision)
        with reading(engine) as session:
            return list(session.scalars(select(Job.lr).order_by(Job.id)))

    assert migrate(command.downgrade, "0005") == [0.1, 0.5]
    assert migrate(command.upgrade, "head") == [None, 0.5]
    engine.dispose()


def test_a_downgrade_takes_evaluations_along_and_an_upgrade_keeps_trainings(bare: Settings) -> None:
    """A version before would claim an evaluation, and fail it: it cannot read its config."""
    from alembic import command

    engine = open_database(bare) if bare.embedded else _upgraded(bare)
    enqueue(engine, 2)
    train(engine)
    evaluate(engine, 1)
    queue.cancel(engine, [2])
    run(engine)
    evaluate(engine, 1, again=True)
    take(engine)
    for verb, revision in ((command.downgrade, "0015"), (command.upgrade, "head")):
        with engine.execution_options(orch_write=True).begin() as connection:
            verb(migration_config(connection), revision)
    assert [(row.id, row.kind, row.state) for row in results.jobs(engine, kind=None)] == [
        (1, "train", "succeeded"),
        (2, "train", "cancelled"),
    ]
    assert scores(engine) == {}
    assert len(evaluate(engine, 1)) == 1
    engine.dispose()


def test_a_downgrade_takes_lenses_along_and_leaves_the_other_jobs(bare: Settings) -> None:
    """A version before would claim the training of a lens for that of an SAE."""
    from alembic import command

    engine = open_database(bare) if bare.embedded else _upgraded(bare)
    queue_lens(engine)
    train_lens(engine)
    queue_lens(engine, heldout_tokens=512)
    take_lens(engine)
    enqueue(engine)
    for verb, revision in ((command.downgrade, "0017"), (command.upgrade, "head")):
        with engine.execution_options(orch_write=True).begin() as connection:
            verb(migration_config(connection), revision)
    assert [(row.id, row.kind) for row in results.jobs(engine, kind=None)] == [(3, "train")]
    assert lenses.entries(engine) == []
    engine.dispose()


def _upgraded(settings: Settings) -> Engine:
    upgrade(settings)
    return open_database(settings)


@pytest.mark.parametrize(("state", "finished"), [("succeeded", None), ("queued", 1.0)])
def test_a_terminal_state_has_its_time(engine: Engine, state: str, finished: float | None) -> None:
    enqueue(engine)
    change = update(Job).values(state=state, finished_at=finished)
    with pytest.raises(StorageError, match="ck_jobs_finished"), transaction(engine) as session:
        session.execute(change)


def test_one_live_job_per_config(engine: Engine) -> None:
    enqueue(engine, 2)
    change = update(Job).values(config_id="the same")
    with pytest.raises(StorageError, match=r"uq_jobs_live_config|jobs\.config_id"), transaction(engine) as session:
        session.execute(change)


def test_concurrent_first_open(bare: Settings) -> None:
    """Several processes meet a database without a schema; it is made once and all of them work."""
    open_it = "upgrade" if not bare.embedded else "open_database"
    program = (
        "import sys; from pathlib import Path; from orchestrator.settings import Settings;"
        f"from orchestrator.database.schema import {open_it} as go;"
        "made = go(Settings(home=Path(sys.argv[1]), database_url=sys.argv[2]));"
        "getattr(made, 'dispose', str)()"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(bare.home), bare.database_url]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(5)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 5, said
    assert said == [""] * 5
    assert current(bare) == HEAD


def test_opening_is_quick_and_loads_no_alembic(sqlite_settings: Settings) -> None:
    program = (
        "import sys, time; from pathlib import Path; from orchestrator.settings import Settings;"
        "from orchestrator.database.schema import open_database; import orchestrator.results, orchestrator.dispatch;"
        "import orchestrator.queue; s = Settings(home=Path(sys.argv[1])); open_database(s).dispose();"
        "start = time.process_time(); open_database(s).dispose(); assert time.process_time() - start < 0.05;"
        "names = ('alembic', 'torch', 'celery', 'mlflow', 'numpy', 'orchestrator.config.job', 'psycopg');"
        "heavy = [name for name in names if name in sys.modules];"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(sqlite_settings.home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_service_database_without_schema_is_refused(new_postgres: Callable[[bool], str]) -> None:
    with pytest.raises(StorageError, match="no schema") as told:
        open_database(Settings(database_url=new_postgres(False)))
    assert told.value.hint == "Run: orch db upgrade"


def test_a_stale_schema_is_refused(postgres_settings: Settings) -> None:
    _set_version(postgres_settings, "0000")
    with pytest.raises(StorageError, match="has schema 0000; this version needs") as told:
        open_database(postgres_settings)
    assert "orch db upgrade" in told.value.hint


def test_a_newer_schema_is_left_alone(settings: Settings) -> None:
    _set_version(settings, "9999")
    with pytest.raises(StorageError, match="9999") as told:
        upgrade(settings)
    assert "newer" in told.value.hint
    assert current(settings) == "9999"


def test_a_read_only_file(sqlite_settings: Settings) -> None:
    """As root no mode bits hold: SQLite is told so itself."""
    engine = connect(sqlite_settings.database)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON").close())
    with pytest.raises(StorageError, match="readonly") as told:
        enqueue(engine)
    assert "owner and mode" in told.value.hint
    engine.dispose()


def _set_version(settings: Settings, version: str) -> None:
    engine = connect(settings.database)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'"))
    engine.dispose()


def test_the_clock_is_the_databases(engine: Engine) -> None:
    with reading(engine) as session:
        first = session.execute(select(db_now())).scalar_one()
        time.sleep(0.02)
        second = session.execute(select(db_now())).scalar_one()
    assert abs(first - time.time()) < 5
    assert second - first >= 0.01, "of the statement, not of the transaction"


def test_sessions_are_bounded(postgres_settings: Settings) -> None:
    engine = open_database(postgres_settings)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with engine.connect() as connection:
        found = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    engine.dispose()
    assert found == ["10s", "2s", "10s"]


def test_sqlite_is_set_up(sqlite_settings: Settings) -> None:
    engine = open_database(sqlite_settings)
    with engine.connect() as connection:
        pragmas = ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
    engine.dispose()
    assert found == ["wal", 30000, 1, 1]


def test_a_read_only_scope_cannot_write(postgres_settings: Settings) -> None:
    engine = open_database(postgres_settings)
    with pytest.raises(StorageError, match="read-only"), reading(engine) as session:
        session.execute(text("DELETE FROM events"))
    with transaction(engine) as session:
        session.execute(text("DELETE FROM events"))
    engine.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/d", "oracle://u:secret@h/d"])
def test_a_bad_url_is_explained_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        connect(url)
    assert "secret" not in str(told.value)
    assert "postgresql+psycopg://" in told.value.hint


def test_a_server_that_is_away() -> None:
    settings = Settings(database_url="postgresql://orch:secret@127.0.0.1:1/orch")
    with pytest.raises(StorageError, match="refused") as told:
        open_database(settings)
    assert "secret" not in str(told.value)
    assert "Is the database server up" in told.value.hint


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match="data folder") as told:
        open_database(Settings(home=tmp_path / "home"))
    assert "ORCH_HOME" in told.value.hint


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "orch.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="not a database") as told:
        open_database(Settings(home=tmp_path))
    assert "damaged" in told.value.hint


def test_a_full_disk(sqlite_settings: Settings) -> None:
    engine = open_database(sqlite_settings)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 60"))
    with pytest.raises(StorageError, match="full") as told:
        queue.enqueue(engine, Sweep("s", sweep(9).configs, text="long" * 100_000))
    assert "free some space" in told.value.hint
    assert results.sweeps(engine) == []
    engine.dispose()
