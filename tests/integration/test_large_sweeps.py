"""Sweeps of more jobs than one transaction takes: what others see meanwhile, and what a cut leaves."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select

from orchestrator import queue, results
from orchestrator.cli.display.sweep_table import ROWS_SHOWN
from orchestrator.cli.main import run
from orchestrator.database.engine import reading
from orchestrator.database.models import Job, SweepRow
from orchestrator.errors import ConfigError
from orchestrator.queue import submission
from orchestrator.settings import Settings
from orchestrator.sweep import expand
from tests.queue_shorthand import claim, nothing_to_claim, sweep

ROOT = Path(__file__).parents[2]
FILE = """
name: large
overrides: {subject.layer: 3}
sweep:
  - grid: {sae.n_latents: {range: [64, 2560, 64]}, sae.k: {range: [1, 15, 1]}, training.seed: [0, 1, 2, 3]}
"""
JOBS = 2_400
ENQUEUE = """
import sys
from pathlib import Path
from orchestrator.queue import submission
from orchestrator.cli.main import main
submission.ROWS_AT_ONCE = 60
main(["enqueue", *sys.argv[1:]])
"""


def stored(engine: Engine) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def start(settings: Settings, file: Path, *options: str) -> "subprocess.Popen[bytes]":
    place = {"ORCH_HOME": str(settings.home), "ORCH_DATABASE_URL": settings.database_url or ""}
    return subprocess.Popen(
        [sys.executable, "-c", ENQUEUE, str(file), *options], cwd=ROOT, stdout=subprocess.DEVNULL,
        env=os.environ | {name: value for name, value in place.items() if value},
    )  # fmt: skip


def cut_off(settings: Settings, engine: Engine, file: Path, *options: str, before: int = 0) -> int:
    """Kill an `orch enqueue` when some of its jobs are there; return how many are."""
    process = start(settings, file, *options)
    deadline = time.monotonic() + 120
    while stored(engine) < before + 450:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return stored(engine) - before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "large.yaml"
    place.write_text(FILE)
    return place


@pytest.mark.parametrize("options", [(), ("--allow-duplicate",)])
def test_enqueueing_again_completes_what_was_killed(
    engine: Engine, settings: Settings, file: Path, options: tuple[str, ...]
) -> None:
    there = cut_off(settings, engine, file, *options)
    assert 450 <= there < JOBS
    assert nothing_to_claim(engine), "half a sweep does not run"
    assert not queue.is_done(engine), "and does not look finished"
    (first,) = results.jobs(engine, ids=[1])
    assert first.reason == "Arriving"
    assert start(settings, file, *options).wait() == 0
    with reading(engine) as session:
        ids = Counter(session.scalars(select(Job.config_id)))
        assert session.scalar(select(SweepRow.arriving_after)) is None
    assert set(ids.values()) == {1}
    assert set(ids) == {config.config_id for config in expand(file).configs}
    assert claim(engine).lease.job_id == 1


def test_a_cut_off_set_of_duplicates_is_completed_too(engine: Engine, settings: Settings, file: Path) -> None:
    assert start(settings, file).wait() == 0
    cut_off(settings, engine, file, "--allow-duplicate", before=JOBS)
    assert claim(engine).lease.job_id == 1, "the jobs that were there before go on"
    assert start(settings, file, "--allow-duplicate").wait() == 0
    with reading(engine) as session:
        replicas = Counter((row.config_id, row.replica) for row in session.execute(select(Job.config_id, Job.replica)))
    assert len(replicas) == 2 * JOBS
    assert {replica for _, replica in replicas} == {0, 1}


def test_no_transaction_is_longer_than_its_bound(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "ROWS_AT_ONCE", 100)
    seen: list[tuple[int, bool]] = []

    def look(connection: Any) -> None:
        count, arriving = (
            connection.exec_driver_sql(f"SELECT count(*) FROM {what}").scalar()
            for what in ("jobs", "sweeps WHERE arriving_after IS NOT NULL")
        )
        seen.append((count, bool(arriving)))

    event.listen(engine, "commit", look)
    done = queue.enqueue(engine, sweep(350))
    event.remove(engine, "commit", look)
    assert seen == [(100, True), (200, True), (300, True), (350, False)]
    assert done.job_ids == tuple(range(1, 351))


def test_a_cap_refuses_all_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "ROWS_AT_ONCE", 10)
    with pytest.raises(ConfigError):
        queue.enqueue(engine, sweep(35, run_cap=34))
    assert (stored(engine), results.sweeps(engine)) == (0, [])


def test_a_config_named_twice_in_two_parts_is_one_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "ROWS_AT_ONCE", 3)
    twice = sweep(4).configs * 2
    assert queue.enqueue(engine, replace(sweep(1), configs=twice)).job_ids == (1, 2, 3, 4, None, None, None, None)


def test_two_at_once_add_once(engine: Engine, settings: Settings, file: Path) -> None:
    both = [start(settings, file) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    with reading(engine) as session:
        ids = Counter(session.scalars(select(Job.config_id)))
    assert len(ids) == JOBS
    assert set(ids.values()) == {1}


def test_what_is_printed_is_bounded(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(settings.home))
    if settings.database_url:
        monkeypatch.setenv("ORCH_DATABASE_URL", settings.database_url)
    for options in (("--dry-run",), ()):
        assert run(["enqueue", str(file), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < ROWS_SHOWN + 10
        assert f"… {JOBS - ROWS_SHOWN:,} more …" in lines
        assert f"add{'' if options else 'ed'} {JOBS}" in lines[-2 if options else -1]


def test_configs_of_a_sweep_share_what_is_equal(file: Path) -> None:
    """A hundred thousand configs fit in memory: what their points assign alike is one object."""
    configs = expand(file).configs
    parts = {name: len({id(getattr(config, name)) for config in configs}) for name in type(configs[0]).model_fields}
    assert parts == {"subject": 1, "data": 1, "sae": 600, "optimizer": 1, "training": 4, "stop": 1}
