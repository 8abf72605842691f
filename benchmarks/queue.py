"""The queue's speed, on SQLite and on PostgreSQL, through the calls that `orch` and its workers make.

    python -m benchmarks.queue [--short]

Enqueue of a sweep file of 10,000 configs, from its text to the commit; enqueue of a single one; claims and heartbeats,
each a transaction of its own; what `orch status` reads; and these again as finished jobs pile up. PostgreSQL flushes
every commit to the disk, as it does when nobody tells it otherwise; SQLite does what ours always does (WAL, NORMAL).
Prints tables and a line of JSON.
"""

import argparse
import json
import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine

from benchmarks import outages
from benchmarks.filled_database import finished_jobs
from benchmarks.interleaved_timing import table
from orchestrator import queue, results
from orchestrator.cli.commands.status import _read
from orchestrator.database.engine import connect
from orchestrator.database.schema import upgrade
from orchestrator.settings import Settings
from orchestrator.sweep import expand

SWEEP = """
name: ten-thousand
overrides: {subject.layer: 3, stop.rule: max_tokens}
sweep:
  - grid:
      sae.n_latents: {range: [64, 6400, 64]}
      sae.k: {range: [1, 50, 1]}
      training.seed: [0, 1]
"""
DURABLE = ("-c", "fsync=on", "-c", "full_page_writes=on")
WORKER = queue.Worker("bench", "here", 1, "cpu")
LEASE_SECONDS = 3600.0
START_SECONDS = 6.0
"""Until several processes have loaded everything and claim at the same time."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="up to 100,000 finished jobs instead of 1,000,000")
    options.add_argument("--only", choices=("sqlite", "postgres"))
    asked = options.parse_args()
    sizes = (1_000, 10_000, 100_000) if asked.short else (1_000, 10_000, 100_000, 1_000_000)
    speeds: list[dict[str, Any]] = []
    growth: list[dict[str, Any]] = []
    for backend in [asked.only] if asked.only else ["sqlite", "postgres"]:
        for measure, found in ((_speeds, speeds), (partial(_growth, sizes=sizes), growth)):
            with TemporaryDirectory(prefix="orch-bench-") as folder, _database(backend, Path(folder)) as engine:
                found += [{"database": backend} | row for row in measure(engine, Path(folder))]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n{table(speeds)}\n\n{table(growth)}")
    print(json.dumps({"speeds": speeds, "growth": growth}))


@contextmanager
def _database(backend: str, home: Path) -> Iterator[Engine]:
    if backend == "sqlite":
        yield from _opened(Settings(home=home))
    else:
        with outages.postgres(*DURABLE) as server:
            yield from _opened(Settings(home=home, database_url=server.url))


def _opened(settings: Settings) -> Iterator[Engine]:
    upgrade(settings)
    engine = connect(settings.database)
    yield engine
    engine.dispose()


def _speeds(engine: Engine, folder: Path) -> Iterator[dict[str, Any]]:
    file = _sweep_file(folder)
    sweep = expand(file)  # also loads what it needs
    small = replace(sweep, name="small", configs=sweep.configs[:1])
    queue.enqueue(engine, small)
    whole = _times(lambda: queue.enqueue(engine, expand(file)), 1)
    yield _row("enqueue a file of 10,000 configs", whole, target="2,000 ms")
    yield _row("the same again: nothing new", _times(lambda: queue.enqueue(engine, expand(file)), 3))
    singles = iter(sweep.configs[1:])
    one = _times(lambda: queue.enqueue(engine, replace(small, configs=(next(singles),))), 500)
    yield _row("enqueue one config", one, target="p99 20 ms")
    claims: list[queue.Claim] = []
    alone = _times(lambda: claims.append(_claim(engine)), 1000)
    yield _row("claim, 1 process", alone, target="500/s")
    yield _claims_at_once(engine, 4)
    beats = iter(range(1, 10**6))
    lease = claims[0].lease
    beat = _times(lambda: queue.heartbeat(engine, lease, lease_seconds=LEASE_SECONDS, tokens_seen=next(beats)), 2000)
    yield _row("heartbeat, 1 process", beat, target="67/s for 1,000 GPUs")
    finished_jobs(engine, 100_000)
    yield _row("orch status over 100,000 jobs", _times(lambda: _status(engine), 20), target="500 ms")


def _growth(engine: Engine, folder: Path, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the medians in ms by the number of finished jobs, and what the last is to the first."""
    queue.enqueue(engine, expand(_sweep_file(folder)))
    lease = _claim(engine).lease
    works: dict[str, tuple[Callable[[], object], int]] = {
        "claim": (lambda: _claim(engine), 300),
        "heartbeat": (lambda: queue.heartbeat(engine, lease, lease_seconds=LEASE_SECONDS, tokens_seen=1), 300),
        "look for expired leases": (lambda: queue.release_expired(engine, grace_seconds=LEASE_SECONDS), 300),
        "look for waiting jobs": (lambda: queue.waiting(engine, limit=64), 100),
        "orch status": (lambda: _status(engine), 20),
    }
    medians: dict[str, list[float]] = {name: [] for name in works}
    there = 0
    for size in sizes:
        if size > there:
            finished_jobs(engine, size - there)
        there = size
        for name, (work, number) in works.items():
            work()
            medians[name].append(1e3 * statistics.median(_times(work, number)))
    for name, found in medians.items():
        cells = {f"{size:,} finished, ms": median for size, median in zip(sizes, found, strict=True)}
        yield {"what": name} | cells | {"last / first": found[-1] / found[0]}


def _sweep_file(folder: Path) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(SWEEP)
    return file


def _status(engine: Engine) -> None:
    """Read what `orch status` shows."""
    _read(engine, (), None, limit=50)
    results.counts(engine)
    results.workers(engine)


def _claim(engine: Engine) -> queue.Claim:
    got = queue.claim(engine, WORKER, token=uuid.uuid4().hex, lease_seconds=LEASE_SECONDS)
    assert got
    return got


def _claims_at_once(engine: Engine, processes: int, each: int = 500) -> dict[str, Any]:
    url, start_at = engine.url.render_as_string(hide_password=False), time.time() + START_SECONDS
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = [*pool.map(_claim_many, [url] * processes, [each] * processes, [start_at] * processes)]
    seconds = [second for _, _, times in found for second in times]
    span = max(end for _, end, _ in found) - min(start for start, _, _ in found)
    return _row(f"claim, {processes} processes", seconds, target="500/s") | {"per second": len(seconds) / span}


def _claim_many(url: str, number: int, start_at: float) -> tuple[float, float, list[float]]:
    engine = connect(url)
    _claim(engine)
    time.sleep(max(0.0, start_at - time.time()))
    start = time.time()
    seconds = _times(lambda: _claim(engine), number)
    engine.dispose()
    return start, time.time(), seconds


def _times(work: Callable[[], object], number: int) -> list[float]:
    seconds = []
    for _ in range(number):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def _row(what: str, seconds: Sequence[float], *, target: str = "") -> dict[str, Any]:
    ordered = sorted(seconds)
    p50, p99 = (1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    per_second = len(ordered) / sum(ordered)
    return {"what": what, "n": len(ordered), "p50 ms": p50, "p99 ms": p99, "per second": per_second, "target": target}


if __name__ == "__main__":
    main()
