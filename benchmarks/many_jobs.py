"""A hundred thousand jobs through the commands that people type, on SQLite and on PostgreSQL.

    python -m benchmarks.many_jobs [--short] [--only sqlite]

Enqueue of a sweep file of 100,000 points, and how long a small write of another process waited meanwhile at most, which
is how long the write lock was held; `orch status` over them, filtered and sorted, beside the mere import of SQLAlchemy,
which it cannot do without; then `orch fit` (all laws; with what MLflow shows of them, and without) and `orch report` of
5,000 finished jobs with curves. Each figure is of the whole command, from its start: wall and CPU seconds, largest
resident set. PostgreSQL flushes every commit to the disk. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import insert

from benchmarks import outages
from benchmarks.filled_database import measured_jobs
from benchmarks.interleaved_timing import table
from benchmarks.laws import KS, SIZES, planted_jobs
from benchmarks.queue import DURABLE
from orchestrator.database.engine import connect, db_now, transaction
from orchestrator.database.models import Event
from orchestrator.database.schema import upgrade
from orchestrator.processes.python_process import python_command, python_environment
from orchestrator.results.choice import Choice, choose
from orchestrator.settings import Settings
from worker.tracking.own_store import prepare

SWEEP = """
name: many
overrides: {{subject.layer: 3, stop.rule: max_tokens}}
sweep:
  - grid:
      sae.n_latents: {{range: [64, 6400, 64]}}
      sae.k: {{range: [1, 50, 1]}}
      training.seed: {{range: [0, {last_seed}, 1]}}
"""
_MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""From a small process: what starts a command counts into the command's largest resident set."""
CHOICES = {
    "--sort priority": Choice(sort="priority"), "--sort=-fvu": Choice(sort="-fvu"),
    "--where subject.layer=3 --sort=-n": Choice(where={"subject.layer": [3]}, sort="-n"),
    "--where sae.k=50": Choice(where={"sae.k": [50]}), "--sort optimizer.lr": Choice(sort="optimizer.lr"),
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="10,000 points and 500 finished jobs")
    options.add_argument("--only", choices=("sqlite", "postgres"))
    asked = options.parse_args()
    found: list[dict[str, Any]] = []
    for backend in [asked.only] if asked.only else ["sqlite", "postgres"]:
        with TemporaryDirectory(prefix="orch-many-") as folder, _database(backend, Path(folder)) as settings:
            for row in _measured(settings, short=asked.short):
                found.append({"database": backend} | row)
                print(row, flush=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n{table(found)}")
    print(json.dumps(found))


@contextmanager
def _database(backend: str, home: Path) -> Iterator[Settings]:
    if backend == "sqlite":
        settings = Settings(home=home)
        upgrade(settings)
        yield settings
    else:
        with outages.postgres(*DURABLE) as server:
            settings = Settings(home=home, database_url=server.url)
            upgrade(settings)
            yield settings


def _measured(settings: Settings, *, short: bool) -> Iterator[dict[str, Any]]:
    file = settings.home / "many.yaml"
    file.write_text(SWEEP.format(last_seed=1 if short else 19))
    points = 10_000 if short else 100_000
    with _other_writes(settings) as waits:
        added = _command(settings, "enqueue", str(file))
    yield added | {"what": f"orch enqueue, {points:,} points", "longest write lock, s": max(waits)}
    load = [sys.executable, "-c", "import sqlalchemy.orm"]
    yield _run(settings, load) | {"what": "python -c 'import sqlalchemy.orm'"}
    yield _command(settings, "status") | {"what": f"orch status, {points:,} jobs"}
    yield _command(settings, "status", "--sort", "priority") | {"what": "orch status --sort priority"}
    engine = connect(settings.database)
    for name, choice in CHOICES.items():
        yield _work(lambda: choose(engine, choice, limit=50)) | {"what": f"reading for status {name}"}  # noqa: B023
    seeds = 10 if short else 100
    rows = planted_jobs(seeds)
    measured_jobs(engine, rows, sweep="law")
    engine.dispose()
    jobs = f"{len(SIZES) * len(KS) * seeds:,} jobs"
    yield _command(settings, "fit", "law", "--no-store") | {"what": f"orch fit --no-store, {jobs}"}
    prepare(settings)  # MLflow's store, as the first worker makes it
    yield _command(settings, "fit", "law") | {"what": f"orch fit, and MLflow, {jobs}"}
    page = settings.home / "law.html"
    yield _command(settings, "report", "law", "-o", str(page)) | {
        "what": f"orch report, {jobs}", "page, MB": page.stat().st_size / 1e6
    }  # fmt: skip


def _command(settings: Settings, *arguments: str) -> dict[str, Any]:
    """Run a command of ours to its end."""
    return _run(settings, python_command("orchestrator", *arguments))


def _run(settings: Settings, command: Sequence[str]) -> dict[str, Any]:
    place = {"ORCH_HOME": str(settings.home), "ORCH_DATABASE_URL": settings.database_url}
    environment = python_environment() | {name: value for name, value in place.items() if value}
    started = time.perf_counter()
    run = [sys.executable, "-c", _MEASURED, *command]
    done = subprocess.run(run, env=environment, cwd=settings.home, capture_output=True, text=True, check=True)
    cpu, kilobytes = map(float, done.stdout.split())
    return _row(time.perf_counter() - started, cpu) | {"MB": kilobytes / 1024}


def _work(work: Callable[[], object]) -> dict[str, Any]:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return _row(time.perf_counter() - started, time.process_time() - cpu)


def _row(seconds: float, cpu: float) -> dict[str, Any]:
    rest = {"MB": None, "longest write lock, s": None, "page, MB": None}
    return {"what": "", "seconds": seconds, "CPU seconds": cpu} | rest


@contextmanager
def _other_writes(settings: Settings) -> Iterator[list[float]]:
    """Write a row again and again meanwhile, and note how long each took."""
    engine, ended, found = connect(settings.database), threading.Event(), [0.0]

    def write() -> None:
        while not ended.wait(0.05):
            started = time.perf_counter()
            with transaction(engine) as session:
                session.execute(insert(Event).values(at=db_now(), kind="probe"))
            found.append(time.perf_counter() - started)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        engine.dispose()


if __name__ == "__main__":
    main()
