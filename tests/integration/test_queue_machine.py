"""The queue against a plain model of it: any order of verbs, by owners and by zombies, with lost answers."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from orchestrator import queue, results
from orchestrator.database.engine import connect, reading
from orchestrator.database.models import Attempt, Event, Job, LeaseRow, ResultRow
from orchestrator.database.schema import upgrade
from orchestrator.errors import StateError
from orchestrator.queue import Lease, LeaseLost
from orchestrator.settings import Settings
from tests.queue_words import WORKER, fail, point, ref, result, run_out, sweep

MAX_FAILURES = 2
CONFIGS = st.integers(0, 3)
TIMES = st.integers(1, 2)
"""How often a caller says it: twice when the first answer was lost."""


@dataclass
class Expected:
    """One job as the model has it."""

    config: int
    state: str = "queued"
    desired: str = "run"
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    owner: Lease | None = None
    curve: set[int] = field(default_factory=set)

    def land(self, otherwise: str) -> None:
        """End an attempt as the wish has it, else as said."""
        by_wish = {"cancel": "cancelled", "pause": "paused" if otherwise == "queued" else otherwise}
        self.state, self.desired, self.owner = by_wish.get(self.desired, otherwise), "run", None


class QueueMachine(RuleBasedStateMachine):
    template: Path
    leases: Bundle[Lease] = Bundle("leases")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        shutil.copy(self.template, self.folder.name)
        self.engine = connect(f"sqlite:///{self.folder.name}/{self.template.name}")
        self.jobs: dict[int, Expected] = {}
        self.ended: dict[Lease, str] = {}
        self.tokens = 0

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
            self.folder.cleanup()

    @rule(config=CONFIGS, duplicate=st.booleans())
    def enqueue(self, config: int, duplicate: bool) -> None:
        new = sweep(1, start=config, max_failures=MAX_FAILURES)
        (got,) = queue.enqueue(self.engine, new, allow_duplicate=duplicate).job_ids
        there = any(j.config == config and j.state not in {"failed", "cancelled"} for j in self.jobs.values())
        assert (got is None) == (there and not duplicate)
        if got is not None:
            self.jobs[got] = Expected(config)

    @rule(target=leases, times=TIMES)
    def claim(self, times: int) -> Any:
        self.tokens += 1
        waiting = [i for i, j in sorted(self.jobs.items()) if j.state == "queued"]
        for _ in range(times):
            got = queue.claim(self.engine, WORKER, token=f"t{self.tokens}", lease_seconds=600.0)
            assert (got.lease.job_id if got else None) == (waiting[0] if waiting else None)
        if got is None:
            return Lease(1, 1, "nobody's")
        job = self.jobs[got.lease.job_id]
        job.state, job.attempt, job.owner = "running", job.attempt + 1, got.lease
        assert got.lease.attempt == job.attempt
        return got.lease

    def _write(self, lease: Lease, write: Callable[[], Any]) -> Expected | None:
        """Let a worker write; return its job if it owns it."""
        job = self.jobs.get(lease.job_id)
        if job is not None and job.owner == lease:
            self.said = write()
            return job
        with pytest.raises(LeaseLost):
            write()
        return None

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        job = self._write(lease, lambda: queue.heartbeat(self.engine, lease, lease_seconds=600.0, tokens_seen=1))
        assert job is None or job.desired == self.said

    @rule(lease=leases, tokens=st.integers(1, 5))
    def record(self, lease: Lease, tokens: int) -> None:
        if job := self._write(lease, lambda: queue.record(self.engine, lease, [point(tokens)])):
            job.curve.add(tokens)

    @rule(lease=leases, tokens=st.integers(0, 5))
    def begin(self, lease: Lease, tokens: int) -> None:
        if job := self._write(lease, lambda: queue.begin(self.engine, lease, {}, tokens)):
            job.curve = {at for at in job.curve if at <= tokens}

    @rule(lease=leases, tokens=st.integers(1, 5))
    def checkpoint(self, lease: Lease, tokens: int) -> None:
        if job := self._write(lease, lambda: queue.checkpointed(self.engine, lease, ref(tokens))):
            job.lost = 0

    def _end(self, lease: Lease, how: str, end: Callable[[], Any], times: int) -> Expected | None:
        """Let a worker end its attempt; saying the same again is no second ending."""
        if self.ended.get(lease) == how:
            end()
            return None
        job = self._write(lease, end)
        if job is not None:
            self.ended[lease] = how
            for _ in range(times - 1):
                end()
        return job

    @rule(lease=leases, times=TIMES)
    def finish(self, lease: Lease, times: int) -> None:
        if job := self._end(lease, "finish", lambda: queue.finish(self.engine, lease, result()), times):
            job.state, job.desired, job.owner, job.lost = "succeeded", "run", None, 0

    @rule(lease=leases, times=TIMES, retry=st.booleans())
    def fail(self, lease: Lease, times: int, retry: bool) -> None:
        if job := self._end(lease, f"fail{retry}", lambda: self._fail(lease, retry), times):
            job.failures += 1
            job.land("queued" if retry and job.failures < MAX_FAILURES else "failed")

    def _fail(self, lease: Lease, retry: bool) -> None:
        fail(self.engine, lease, retry=retry, outcome=f"fail{retry}")

    @rule(lease=leases, times=TIMES)
    def release(self, lease: Lease, times: int) -> None:
        if job := self._end(lease, "release", lambda: queue.release(self.engine, lease), times):
            job.land("queued")

    @rule(lease=consumes(leases))
    def fall_silent(self, lease: Lease) -> None:
        """The worker stops for so long that its job is given to another; the lease lives on as a zombie's."""
        job = self.jobs.get(lease.job_id)
        if job is None or job.owner is None:
            assert queue.release_expired(self.engine, grace_seconds=1.0) == []
            return
        run_out(self.engine, lease.job_id)
        if job.owner == lease and self.tokens % 2:  # it woke just in time
            queue.heartbeat(self.engine, lease, lease_seconds=600.0)
            assert queue.release_expired(self.engine, grace_seconds=1.0) == []
            return
        assert queue.release_expired(self.engine, grace_seconds=1.0, backoff_seconds=0.0) == [lease.job_id]
        job.lost += 1
        job.land("failed" if job.lost >= 3 else "queued")

    @rule(target=leases, data=st.data())
    def wake_as_zombie(self, data: st.DataObject) -> Any:
        """Any lease that was ever given may speak again."""
        with reading(self.engine) as session:
            rows = session.execute(select(Attempt.job_id, Attempt.attempt, Attempt.token)).all()
        return data.draw(st.sampled_from([Lease(*row) for row in rows])) if rows else Lease(1, 1, "nobody's")

    @rule(data=st.data(), verb=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def wish(self, data: st.DataObject, verb: str) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        allowed = getattr(self, f"_{verb}")(job_id, self.jobs[job_id])
        if allowed:
            getattr(queue, verb)(self.engine, [job_id])
        else:
            with pytest.raises(StateError):
                getattr(queue, verb)(self.engine, [job_id])

    def _cancel(self, _: int, job: Expected) -> bool:
        if job.state == "running":
            job.desired = "cancel"
        elif job.state in {"queued", "paused"}:
            job.state = "cancelled"
        return job.state in {"running", "cancelled"}

    def _pause(self, _: int, job: Expected) -> bool:
        if job.state == "running" and job.desired != "cancel":
            job.desired = "pause"
        elif job.state == "queued":
            job.state = "paused"
        return job.state == "paused" or (job.state == "running" and job.desired != "cancel")

    def _resume(self, _: int, job: Expected) -> bool:
        if job.state == "running" and job.desired == "pause":
            job.desired = "run"
        elif job.state == "paused":
            job.state = "queued"
        return job.state == "queued" or (job.state == "running" and job.desired != "cancel")

    def _retry(self, job_id: int, job: Expected) -> bool:
        with reading(self.engine) as session:
            replica = dict(session.execute(select(Job.id, Job.replica)).all())
        taken = any(
            other.config == job.config and replica[i] == replica[job_id] and other.state not in {"failed", "cancelled"}
            for i, other in self.jobs.items()
            if i != job_id
        )
        if job.state in {"failed", "cancelled"} and not taken:
            job.state, job.failures, job.lost = "queued", 0, 0
        return job.state == "queued"

    @invariant()
    def the_database_is_the_model(self) -> None:
        if not hasattr(self, "engine"):
            return
        with reading(self.engine) as session:
            rows = {job.id: job for job in session.scalars(select(Job))}
            held = {Lease(row.job_id, row.attempt, row.token) for row in session.scalars(select(LeaseRow))}
            given = dict(session.execute(select(ResultRow.job_id, ResultRow.attempt)).all())
            open_ = set(session.execute(select(Attempt.job_id, Attempt.attempt).where(Attempt.ended_at.is_(None))))
            tried = dict(session.execute(select(Attempt.job_id, func.count()).group_by(Attempt.job_id)).all())
            claims = select(Event.job_id, func.count()).where(Event.kind == "claimed").group_by(Event.job_id)
            claimed = dict(session.execute(claims).all())
        assert rows.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            row = rows[job_id]
            assert (row.state, row.desired, row.attempt) == (job.state, job.desired, job.attempt)
            assert (row.failures, row.lost_in_row) == (job.failures, job.lost)
            assert (job_id in given) == (job.state == "succeeded")
            assert given.get(job_id, job.attempt) == job.attempt
            assert tried.get(job_id, 0) == claimed.get(job_id, 0) == job.attempt
            assert {p.tokens_seen for p in results.curve(self.engine, job_id)} == job.curve
        assert held == {job.owner for job in self.jobs.values() if job.owner}
        assert {tuple(row) for row in open_} == {(lease.job_id, lease.attempt) for lease in held}
        assert all((job.owner is not None) == (job.state == "running") for job in self.jobs.values())


@pytest.mark.timeout(900)  # it takes seconds; a failure takes minutes to be made small
def test_any_order_of_verbs(tmp_path: Path) -> None:
    upgrade(Settings(home=tmp_path))
    QueueMachine.template = tmp_path / "orch.db"
    quick = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(QueueMachine, settings=quick)
