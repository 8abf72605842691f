"""Soak test of the queue: workers and servers are killed and frozen, and no job may be lost or done twice.

The workers are `python -m worker`; a light trainer replaces the real one (unless `--real`), with checkpoints,
resumes and a curve that shows every step that was lost or taken twice. Every other sweep asks for an evaluation of each
SAE; a light one replaces the real one, with scores that show what was measured of another SAE. Killed workers are
replaced. In the end a separate program, `benchmarks.invariants`, reads the database and the checkpoints. Prints a table
and a line of JSON; exit status 1 if anything was lost, doubled or changed, or a bound does not hold.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from benchmarks import outages, soak_evaluations, soak_summary
from benchmarks.fault_injection import KILLS, SICK_WEIGHTS, STALL_WEIGHTS, WEIGHTS, FaultInjector
from benchmarks.interleaved_timing import table
from benchmarks.light_evaluation import FAMILY_SECONDS, PLAN
from benchmarks.light_trainer import STEP_SECONDS
from benchmarks.light_worker import PAUSE_SECONDS
from benchmarks.outages import Outage, Probe, Server
from benchmarks.sick_hosts import OWN_MOUNTS, small_disk
from benchmarks.worker_processes import WorkerProcesses
from orchestrator import dispatch, queue, results
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.engine import connect, reading
from orchestrator.database.models import Job
from orchestrator.database.schema import upgrade
from orchestrator.errors import StorageError
from orchestrator.settings import Settings, load
from orchestrator.sweep.sweep import Limits, Sweep

STEPS, STEP_TOKENS, SHARING = 48, 64, 3
EVALUATION_SHARE = 0.6
"""Of the time of a light training, what a light evaluation takes."""
MARGIN_SECONDS = 5.0
"""What is allowed beside lease and grace until a job is claimed again: a look at the leases, and a free worker."""
DRAIN_SECONDS = 600.0
FAST_SETTINGS = {"heartbeat_seconds": 0.5, "grace_seconds": 0.5, "reconcile_seconds": 0.5, "checkpoint_seconds": 0.5,
             "terminate_seconds": 5, "outage_seconds": 60}  # fmt: skip


class SoakSetup(NamedTuple):
    """The database, settings and servers of one soak."""

    engine: Engine
    settings: Settings
    environ: dict[str, str]
    servers: tuple[Server, ...]


def main() -> None:
    asked = _options()
    bad = False
    for backend in ("sqlite", "service") if asked.both else ("service",) if asked.service else ("sqlite",):
        with _setup(asked, backend) as setup:
            bad |= _soak(asked, setup, backend)
    sys.exit(bad)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=60, help="at least so many; they come as others end")
    options.add_argument("--workers", type=int, default=6)
    options.add_argument("--minutes", type=float, default=1.0, help="how long faults are injected, at most")
    options.add_argument("--kills", type=int, help="or until so many kills")
    options.add_argument("--faults", type=int, help="or until so many faults of every kind")
    options.add_argument("--sick", action="store_true", help="disks and servers fail too, of one host or of all; root")
    options.add_argument("--every", type=float, default=0.8, help="mean seconds between two faults")
    options.add_argument("--lease", type=float, default=5.0, help="seconds")
    options.add_argument("--job-seconds", type=float, default=2.5, help="of a light job without faults")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--real", action="store_true", help="train real (small) autoencoders")
    options.add_argument("--folder", type=Path, help="keep everything there")
    where = options.add_mutually_exclusive_group()
    where.add_argument("--service", action="store_true", help="PostgreSQL and Redis, which are killed as well")
    where.add_argument("--both", action="store_true", help="SQLite, then PostgreSQL and Redis")
    return options.parse_args()


@contextmanager
def _setup(asked: argparse.Namespace, backend: str) -> Iterator[SoakSetup]:
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(TemporaryDirectory(prefix="orch-soak-")))
        home = folder / backend
        home.mkdir(parents=True)
        if asked.sick:
            stack.enter_context(small_disk(home / "artifacts"))
        found: tuple[Server, ...] = ()
        if backend == "service":
            found = stack.enter_context(outages.postgres()), stack.enter_context(outages.redis())
        values: dict[str, Any] = FAST_SETTINGS | {
            "home": home,
            "lease_seconds": asked.lease,
            "jobs_per_trainer": SHARING,
        }
        values |= {"poll_seconds": 2.0 if found else 0.2, "stall_seconds": 60 if asked.real else asked.lease + 1}
        if found:
            values |= {"database_url": found[0].url, "broker_url": found[1].url}
        environ = {f"ORCH_{name.upper()}": str(value) for name, value in values.items()}
        environ |= {"ORCH_TRACKING_URL": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environ[PAUSE_SECONDS] = "0.5"
        environ[STEP_SECONDS] = str(asked.job_seconds / STEPS)
        environ[FAMILY_SECONDS] = str(EVALUATION_SHARE * asked.job_seconds / len(PLAN.metrics))
        settings = load(start=home, environ=environ)
        upgrade(settings)
        engine = connect(settings.database)
        stack.callback(engine.dispose)
        yield SoakSetup(engine, settings, environ, found)


def _soak(asked: argparse.Namespace, setup: SoakSetup, backend: str) -> bool:
    """Run one soak; say whether it found anything bad."""
    feed = _Feed(setup, asked)
    started = time.monotonic()
    probe = Probe(setup.engine, patience=setup.settings.lease_seconds / 4)
    module = "worker" if asked.real else "benchmarks.light_worker"
    logs, before = setup.settings.home / "workers", OWN_MOUNTS if asked.sick else ()
    processes = WorkerProcesses(asked.workers, module, environ=setup.environ, logs=logs, before=before)
    never = float("inf")
    try:
        faults = FaultInjector(
            processes, probe, setup.settings, setup.servers, seed=asked.seed, every=asked.every, sick=asked.sick
        )
        while time.monotonic() - started < 60 * asked.minutes and faults.killed < (asked.kills or never):
            if faults.injected >= (asked.faults or never):
                break
            faults.inject()
            processes.tick()
            feed.tick()
            time.sleep(0.01)
        faults.end()
        drained = _drain(setup, processes, feed)
        processes.stop()
    finally:
        processes.close()
        probe.close()
    figures, wrong = _summary(asked, setup, faults, feed, probe.outages)
    figures = {"backend": backend, "seconds": time.monotonic() - started, "drained": drained} | figures
    print(table([{"": name, backend: value} for name, value in figures.items() if name != "backend"]))
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    print(json.dumps(figures | {"wrong": wrong, "seed": asked.seed}), flush=True)
    checked = subprocess.run([sys.executable, "-m", "benchmarks.invariants", setup.settings.database], check=False)
    return bool(wrong) or checked.returncode != 0


class _Feed:
    """Enqueues jobs: enough that most workers are busy, so few that one is free for a job that was lost."""

    def __init__(self, setup: SoakSetup, asked: argparse.Namespace) -> None:
        self._setup, self._asked = setup, asked
        self._subject = _subject(setup.settings.home) if asked.real else None
        self._look_at = 0.0
        self.jobs: list[int] = []
        """Those that train."""
        self._sweeps = 0
        self.retried = 0

    def tick(self) -> None:
        """Add jobs when few are open; retry those that lost three workers in a row."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + 0.5
        try:
            if _n_open(self._setup.engine) < self._asked.workers:
                self.add(self._asked.workers)
            self.retry()
        except StorageError:
            return  # the database is away

    def complete(self) -> None:
        """Add what is missing of the jobs that were asked for."""
        if len(self.jobs) < self._asked.jobs:
            self.add(self._asked.jobs - len(self.jobs))

    def add(self, number: int) -> None:
        """Enqueue so many new jobs; call it again after a StorageError."""
        start = len(self.jobs)
        configs = tuple(_config(seed, self._subject) for seed in range(start, start + number))
        plan = PLAN if self._sweeps % 2 == 0 else None
        sweep = Sweep(f"soak-{start}", configs, limits=Limits(max_failures=1000), evaluation=plan)
        queue.enqueue(self._setup.engine, sweep)
        with reading(self._setup.engine) as session:  # its answer may have been lost before: what is there counts
            ids = session.scalars(select(Job.id).where(Job.kind == "train").order_by(Job.id)).all()
        self.jobs = [*ids]
        self._sweeps += 1
        dispatch.wake(self._setup.settings, self.jobs[start:])

    def retry(self) -> None:
        """Retry the jobs that were given up because they lost their worker again and again."""
        given_up = select(Job.id).where(
            Job.state == "failed", Job.reason.contains("attempts in a row lost their worker")
        )
        with reading(self._setup.engine) as session:
            ids = session.scalars(given_up).all()
        for job_id in ids:
            queue.retry(self._setup.engine, [job_id])
            self.retried += 1


def _config(seed: int, subject: Path | None) -> JobConfig:
    if subject:
        from tests.small_world import small_config

        return small_config(subject, n_latents=32 + seed)
    # Two of three jobs share a stream of activations, and so perhaps a trainer; one is alone.
    stream = seed if seed % SHARING == 0 else 1_000_000 + seed // (2 * SHARING)
    training = {"seed": seed, "batch_tokens": STEP_TOKENS, "max_tokens": STEPS * STEP_TOKENS}
    return parse({"training": training, "data": {"seed": stream}, "sae": {"n_latents": 64}})


def _subject(home: Path) -> Path:
    from tests.small_world import make_subject

    return make_subject(home / "subject")


def _n_open(engine: Engine) -> int:
    """Return how many trainings and evaluations wait or run."""
    counts = [results.counts(engine, kind=kind) for kind in ("train", "evaluate")]
    return sum(found["queued"] + found["running"] for found in counts)


def _drain(setup: SoakSetup, processes: WorkerProcesses, feed: _Feed) -> bool:
    """Wait until every job is over; say whether that came to pass."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        processes.tick()
        try:
            feed.complete()
            feed.retry()
            if not _n_open(setup.engine):
                return True
        except StorageError:
            continue
        time.sleep(0.1)
    return False


def _summary(
    asked: argparse.Namespace, setup: SoakSetup, faults: FaultInjector, feed: _Feed, away: Sequence[Outage]
) -> tuple[dict[str, Any], list[str]]:
    lost, doubled = soak_summary.lost(setup.engine, feed.jobs), soak_summary.doubled(setup.engine)
    altered = [] if asked.real else soak_summary.altered_curves(setup.engine)
    evaluated = soak_evaluations.evaluations(setup.engine, are_light=not asked.real)
    settings = setup.settings
    found = soak_summary.failovers(setup.engine, faults.kills, away, lease_seconds=settings.lease_seconds)
    bound = settings.lease_seconds + settings.grace_seconds + MARGIN_SECONDS
    cancel_bound = settings.heartbeat_seconds + settings.grace_seconds + MARGIN_SECONDS
    charged = soak_summary.charged(setup.engine)
    slow = [f"{what} was lost for {s:.1f} s, above {bound:g}" for what, s in found.plain.items() if s > bound]
    slow += [f"a cancel took {s:.1f} s, above {cancel_bound:g}" for s in faults.cancels.seconds if s > cancel_bound]
    slow = [] if asked.sick else slow  # a host that is sick takes no job, and all may be
    figures = {
        "jobs": len(feed.jobs),
        "database away": len(away),
        "attempts": soak_summary.attempts(setup.engine),
        "faults": faults.injected,
        "kills": faults.killed,
        **{name: faults.done[name] for name in dict.fromkeys((*KILLS, *WEIGHTS))},
        **({name: faults.done[name] for name in (*SICK_WEIGHTS, *STALL_WEIGHTS)} if asked.sick else {}),
        "attempts handed back by sick machines": soak_summary.attempts(setup.engine, outcome="machine"),
        "charged to a job, of a machine": len(charged),
        "lost": len(lost),
        "doubled": len(doubled),
        "altered curves": len(altered),
        **evaluated.figures,
        "given up after lost workers, retried": feed.retried,
        **_spread("failover", [*found.plain.values()]),
        **_spread("of that, until the lease is judged", found.judged),
        "failover bound s": bound,
        **_spread("failover over an outage", found.over_outages),
        **_spread("held back after two losses", found.held_back),
        **_spread("cancel to free", faults.cancels.seconds),
        "cancel bound s": cancel_bound,
    }
    return figures, [
        *lost,
        *doubled,
        *altered,
        *evaluated.lost,
        *evaluated.doubled,
        *evaluated.altered,
        *charged,
        *slow,
    ]


def _spread(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    values = {
        p: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None for p, share in at.items()
    }
    return {f"{name} n": len(ordered)} | {f"{name} {p} s": value for p, value in values.items()}


if __name__ == "__main__":
    os.environ.pop("ORCH_TEST_PG_URL", None)  # a server that is somebody's is not killed
    os.environ.pop("ORCH_TEST_REDIS_URL", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no server behind
    main()
