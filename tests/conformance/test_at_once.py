"""Two of everything at once: enqueues, reconcilers, and an upgrade under the hands of those who work."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from orchestrator import dispatch, queue, results
from orchestrator.cli.main import run
from orchestrator.database.schema import HEAD, current, migration_config, open_database, upgrade
from orchestrator.errors import StorageError
from orchestrator.queue import LeaseLost
from orchestrator.settings import Settings
from orchestrator.storage import garbage
from tests.conformance.fault_port import another, at_commits, at_once
from tests.conformance.promises import broken_promises
from tests.queue_shorthand import attempt, claim, enqueue, events, job, lose, point, ref, result, run_out, state, sweep

SWEEP = "{version: 1, name: s, overrides: {subject.layer: 3}, sweep: [{grid: {sae.n_latents: [64, 128]}}]}"


def test_f25_a_zombies_checkpoint_is_nobodys(settings: Settings, engine: Engine) -> None:
    """The dead attempt writes into its own folder, its pointer is refused, and `orch gc` removes it."""
    enqueue(engine)
    zombie = claim(engine).lease
    lose(engine, 1)
    owner = claim(engine).lease
    written, kept = (_saved(settings, lease, 64) for lease in (zombie, owner))
    with pytest.raises(LeaseLost):
        queue.checkpointed(engine, zombie, replace(ref(64), uri=str(written)))
    queue.checkpointed(engine, owner, replace(ref(64), uri=str(kept)))
    assert [row.uri for row in results.checkpoints(engine, 1)] == [str(kept)]
    queue.release(engine, owner)
    last = claim(engine)
    assert [one.uri for one in last.checkpoints] == [str(kept)]
    queue.finish(engine, last.lease, result())
    items = garbage.find(engine, settings, older_than=0.0)
    assert written in {item.path for item in items}
    garbage.remove(engine, items)
    assert not written.exists()
    assert broken_promises(engine) == []


def _saved(settings: Settings, lease: queue.Lease, tokens: int) -> Path:
    folder = settings.home / "artifacts" / str(lease.job_id) / str(lease.attempt) / str(tokens)
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"x" * 100)
    return folder


def test_f32_two_enqueues_of_one_sweep(engine: Engine) -> None:
    """One adds all of it, the other none, position by position; half of it was never to be seen."""
    for round_ in range(5):
        one = sweep(20, name=f"s{round_}")
        with another(engine) as other:
            both = at_once(lambda: queue.enqueue(engine, one), lambda: queue.enqueue(other, one))  # noqa: B023
        first, second = sorted(both, key=lambda done: done.added)
        assert first.job_ids == (None,) * 20
        assert None not in second.job_ids
    assert results.counts(engine)["queued"] == 100
    assert broken_promises(engine) == []


def test_f32_an_enqueue_interrupted_in_the_middle(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when all rows are written and nothing is committed."""
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP)
    monkeypatch.setenv("ORCH_HOME", str(settings.home))
    monkeypatch.setenv("ORCH_DATABASE_URL", settings.database_url)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.database.schema.open_database", lambda _: engine)
    with at_commits(engine, interrupt):
        assert run(["enqueue", str(file)]) == 130
    assert results.sweeps(engine) == []
    assert run(["enqueue", str(file)]) == 0
    assert results.counts(engine)["queued"] == 2
    assert broken_promises(engine) == []


NEXT = f"""
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = "9999", "{HEAD}", None, None

def upgrade():
    op.add_column("jobs", sa.Column("hue", sa.Text, server_default="grey", nullable=False))
    op.create_table("hues", sa.Column("id", sa.Integer, primary_key=True))
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `upgrade` be that of the next version of orch, which has one migration more."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "9999_hues.py").write_text(NEXT)

    def and_the_next(connection: Connection) -> Any:
        config = migration_config(connection)
        ours = Path(config.get_main_option("script_location")) / "versions"
        config.set_main_option("version_locations", f"{ours}{os.pathsep}{tmp_path / 'versions'}")
        return config

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.database.schema.migration_config", and_the_next)
        yield


@pytest.mark.usefixtures("next_version")
def test_f33_an_upgrade_while_workers_work(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that only adds: who works goes on and writes nothing wrong; who starts is refused, and told why."""
    upgraded = threading.Event()

    def work() -> list[int]:
        done: list[int] = []
        while not (upgraded.is_set() and len(done) >= 5):
            enqueue(engine, start=len(done))
            lease = claim(engine).lease
            queue.record(engine, lease, [point(10)])
            queue.finish(engine, lease, result())
            done.append(lease.job_id)
        return done

    def migrate() -> list[int]:
        upgrade(settings)
        upgraded.set()
        return []

    done, _ = at_once(work, migrate)
    assert current(settings) == "9999"
    assert [state(engine, job_id) for job_id in done] == ["succeeded"] * len(done)
    assert broken_promises(engine) == []
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.database.schema.migration_config", migration_config)
        with pytest.raises(StorageError, match="9999") as told:
            open_database(settings)
    assert told.value.exit_code == 5
    assert "newer" in told.value.hint


def test_f34_two_reconcilers_at_once(settings: Settings, engine: Engine) -> None:
    """Every lease that ran out is taken once: one event, one loss, and no attempt more than there was."""
    for round_ in range(10):
        ids = enqueue(engine, 4, start=4 * round_)
        for job_id in ids:
            assert claim(engine).lease.job_id == job_id
            run_out(engine, job_id)
        with another(engine) as other:
            both = at_once(*(_reconciler(one, settings) for one in (engine, other)))
        assert sorted([*both[0], *both[1]]) == ids
        for job_id in ids:
            row = job(engine, job_id)
            assert (row.state, row.attempt, row.lost_in_row) == ("queued", 1, 1)
            assert events(engine, job_id) == ["enqueued", "claimed", "queued"]
            assert attempt(engine, job_id, 1).outcome == "lost"
        queue.cancel(engine, ids)
    assert broken_promises(engine) == []


def _reconciler(engine: Engine, settings: Settings) -> Callable[[], list[int]]:
    return lambda: dispatch.reconcile(engine, settings).released
