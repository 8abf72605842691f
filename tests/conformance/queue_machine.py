"""The queue against its model: any order of verbs, by owners and zombies, while commits fail or lose their answer."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy import Engine, delete, select, update

from orchestrator import queue
from orchestrator.config.validation import parse
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import (
    CheckpointRow,
    CurvePoint,
    Job,
    LeaseRow,
    LensPointRow,
    MeasuredFamily,
    ScoreRow,
    SweepRow,
    Table,
)
from orchestrator.errors import StateError, StorageError
from orchestrator.queue import Claim, Lease, LeaseLost
from orchestrator.sweep.sweep import Limits, Sweep
from tests.conformance.asked_jobs import FATE, MOST_JOBS, WELL, AskedJobs
from tests.conformance.fault_port import FATES, at_commits, loses_its_answer
from tests.conformance.model import BACKOFF_SECONDS, GRACE_SECONDS, LEASE_SECONDS, MAX_FAILURES, Expected, Model
from tests.conformance.promises import broken_promises
from tests.evaluation_shorthand import BOTH, imported, score
from tests.lens_shorthand import FACTS as LENS_FACTS
from tests.lens_shorthand import lens_point, lens_result
from tests.queue_shorthand import WORKER, point, ref, result

PARTS: list[dict[str, Any]] = [{"training": {"seed": n}, "data": {"seed": n // 3}} for n in range(4)]
CONFIGS = tuple(parse({"sae": {"n_latents": 64}} | part) for part in PARTS)
"""The last reads a stream of its own."""
STREAMS = [config.stream_key for config in CONFIGS]
CONFIG = st.integers(0, len(CONFIGS) - 1)
TOKEN_COUNTS = range(1, 6)
TOKENS = st.sampled_from(TOKEN_COUNTS)
FAMILY = st.sampled_from(BOTH.metrics)


def wipe(engine: Engine) -> None:
    """Empty every table."""
    with transaction(engine) as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(delete(table))


class QueueMachine(AskedJobs):
    leases: Bundle[Lease] = Bundle("leases")
    unheard: Bundle[str] = Bundle("unheard")
    """Tokens of claims whose answer never came."""

    @initialize(max_parallel=st.sampled_from([None, None, 2]), configs=st.lists(CONFIG, min_size=2, max_size=4))
    def start(self, max_parallel: int | None, configs: Sequence[int]) -> None:
        wipe(self.engine)
        self.model = Model(max_parallel)
        self.claims: dict[Lease, Claim] = {}
        self.ended: dict[Lease, str] = {}
        self.begun: set[Lease] = set()
        self.tokens = 0
        self.saes = [imported(self.engine, name) for name in ("one", "other")]
        for config in configs:
            self.enqueue(config)

    def _ask(self, fate: str, verb: Callable[[], Any]) -> Any:
        """Say it until the database answers, as a worker does: the first commit meets its fate."""
        with at_commits(self.engine, FATES[fate]):
            try:
                return verb()
            except StorageError:
                return verb()

    @precondition(lambda self: len(self.model.jobs) < MOST_JOBS)
    @rule(config=CONFIG, duplicate=st.booleans(), priority=st.integers(0, 1), fate=FATE)
    def enqueue(self, config: int, duplicate: bool = False, priority: int = 0, fate: str = WELL) -> None:
        limits = Limits(max_failures=MAX_FAILURES, max_parallel=self.model.max_parallel)
        sweep = Sweep("s", (CONFIGS[config],), limits=limits)
        expected = duplicate or not self.model.holds(config)
        with at_commits(self.engine, FATES[fate]):
            try:
                got = queue.enqueue(self.engine, sweep, allow_duplicate=duplicate, priority=priority)
                assert got.added == expected
            except StorageError:  # a person looks what is there, and says it again only if nothing is
                expected &= fate == "loses its answer"
        with reading(self.engine) as session:
            there = dict(session.execute(select(Job.id, Job.replica)).all())
        new = sorted(there.keys() - self.model.jobs.keys())
        assert len(new) == expected
        for job_id in new:
            self.model.jobs[job_id] = Expected(
                config, priority, there[job_id], ready_at=self.model.now, stream=STREAMS[config]
            )

    @precondition(lambda self: self.model.waiting())
    @rule(target=leases, fate=FATE)
    def claim(self, fate: str = WELL) -> Any:
        return self._took(self._ask(fate, self._claimer(self._token())), self.model.waiting())

    @precondition(lambda self: self.model.waiting())
    @rule(target=unheard)
    def claim_unheard(self) -> Any:
        """A claim is made, and its answer lost; other things may happen before the worker asks again."""
        token, waiting = self._token(), self.model.waiting()
        with at_commits(self.engine, loses_its_answer), pytest.raises(StorageError):
            self._claimer(token)()
        self.model.jobs[waiting[0]].start(token, waiting[0], self.model.now)
        return token

    @rule(target=leases, token=consumes(unheard), fate=FATE)
    def ask_again(self, token: str, fate: str = WELL) -> Any:
        held = [lease.job_id for lease in self.model.owners() if lease.token == token]
        return self._took(self._ask(fate, self._claimer(token)), held or self.model.waiting())

    @rule(target=leases, leader=leases, fate=FATE)
    def claim_companion(self, leader: Lease, fate: str = WELL) -> Any:
        if leader not in self.claims:
            return multiple()
        lead, token = self.claims[leader], self._token()
        companions = self.model.companions(lead)

        def ask() -> Claim | None:
            return queue.claim_companion(
                self.engine, WORKER, leader=lead, token=token, lease_seconds=float(LEASE_SECONDS)
            )

        return self._took(self._ask(fate, ask), companions)

    def _token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    def _claimer(self, token: str) -> Callable[[], Claim | None]:
        return lambda: queue.claim(self.engine, WORKER, token=token, lease_seconds=float(LEASE_SECONDS))

    def _took(self, got: Claim | None, expected: list[int]) -> Any:
        """Compare a claim with what was to be claimed, and note it."""
        assert (got.lease.job_id if got else None) == (expected[0] if expected else None)
        if got is None:
            return multiple()
        job = self.model.jobs[got.lease.job_id]
        if job.owner != got.lease:
            assert job.start(got.lease.token, got.lease.job_id, self.model.now) == got.lease
        assert got.cursor == job.cursor
        assert set(got.measured) == {name for name, how in job.families.items() if how == "measured"}
        assert got.kind == job.kind
        self.claims[got.lease] = got
        return got.lease

    def _write(self, lease: Lease, write: Callable[[], Any], fate: str) -> Expected | None:
        """Let a worker write; return its job if it owns it."""
        job = self.model.jobs.get(lease.job_id)
        if job is not None and job.owner == lease:
            self.said = self._ask(fate, write)
            return job
        with pytest.raises(LeaseLost):
            self._ask(fate, write)
        return None

    @rule(lease=leases, fate=FATE)
    def heartbeat(self, lease: Lease, fate: str = WELL) -> None:
        def beat() -> str:
            return queue.heartbeat(self.engine, lease, lease_seconds=float(LEASE_SECONDS), tokens_seen=1)

        if job := self._write(lease, beat, fate):
            job.expires_at = self.model.now + LEASE_SECONDS
            assert job.desired == self.said

    def _kind(self, lease: Lease) -> str:
        """Return what the job of a lease does: the processes of each kind say other things."""
        return self.model.jobs[lease.job_id].kind

    @rule(lease=leases, tokens=TOKENS, fate=FATE)
    def record(self, lease: Lease, tokens: int, fate: str = WELL) -> None:
        kind = self._kind(lease)
        if kind == "evaluate":
            return
        new = lens_point(tokens) if kind == "lens" else point(tokens)
        if job := self._write(lease, lambda: queue.record(self.engine, lease, [new]), fate):
            job.curve.add(tokens)

    @rule(lease=leases, tokens=st.integers(0, 5), fate=FATE)
    def begin(self, lease: Lease, tokens: int, fate: str = WELL) -> None:
        kind = self._kind(lease)
        facts = LENS_FACTS if kind == "lens" else {}

        def begin() -> None:
            queue.begin(self.engine, lease, facts, tokens, kind="lens" if kind == "lens" else "train")

        if kind == "evaluate":
            self._write(lease, lambda: queue.begin_evaluation(self.engine, lease, {}), fate)
        elif job := self._write(lease, begin, fate):
            self.begun.add(lease)
            job.begin(tokens)

    @rule(lease=leases, tokens=TOKENS, fate=FATE)
    def checkpoint(self, lease: Lease, tokens: int, fate: str = WELL) -> None:
        if self._kind(lease) == "evaluate":
            return
        if job := self._write(lease, lambda: queue.checkpointed(self.engine, lease, ref(tokens)), fate):
            job.checkpoints.add((tokens, lease.attempt))
            job.lost = 0

    @rule(lease=leases, family=FAMILY, fate=FATE)
    def measure(self, lease: Lease, family: str, fate: str = WELL) -> None:
        def measure() -> bool:
            return queue.record_scores(self.engine, lease, family, [score(family)], wall_seconds=1.0)

        if self._kind(lease) == "evaluate" and (job := self._write(lease, measure, fate)):
            assert self.said == (job.measure(family) and fate != "loses its answer")

    @rule(lease=leases, family=FAMILY, fate=FATE)
    def miss(self, lease: Lease, family: str, fate: str = WELL) -> None:
        def miss() -> None:
            queue.record_failed_family(self.engine, lease, family, "it cannot be measured")

        if self._kind(lease) == "evaluate" and (job := self._write(lease, miss, fate)):
            job.miss(family)

    def _end(self, lease: Lease, how: str, end: Callable[[], Any], fate: str) -> Expected | None:
        """Let a worker end its attempt; to say the same again is no second ending."""
        if self.ended.get(lease) == how:
            self._ask(fate, end)
            return None
        job = self._write(lease, end, fate)
        if job is not None:
            self.ended[lease] = how
        return job

    @rule(lease=leases, outcome=st.sampled_from(["converged", "max_tokens"]), fate=FATE)
    def finish(self, lease: Lease, outcome: str = "converged", fate: str = WELL) -> None:
        kind = self._kind(lease)

        def finish() -> None:
            if kind == "lens":
                queue.finish_lens(self.engine, lease, lens_result(outcome=outcome))
            else:
                queue.finish(self.engine, lease, result(outcome=outcome))

        if kind == "lens" and lease not in self.begun:
            self.begin(lease, max(TOKEN_COUNTS))  # its process has read the model before it has a lens
        if kind == "evaluate":
            self._finish_evaluation(lease, fate)
        elif job := self._end(lease, outcome, finish, fate):
            job.finish(outcome)

    def _finish_evaluation(self, lease: Lease, fate: str) -> None:
        def finish() -> str:
            return queue.finish_evaluation(self.engine, lease, 1.0)

        if job := self._end(lease, "finish evaluation", finish, fate):
            job.finish_evaluation(BOTH.metrics)
            assert self.said == job.state

    @rule(lease=leases, retry=st.booleans(), fate=FATE)
    def fail(self, lease: Lease, retry: bool, fate: str = WELL) -> None:
        how: dict[str, Any] = {"outcome": f"fail{retry}", "retry": retry, "exit_code": 70, "error": "Boom"}

        def fail() -> str:
            return queue.fail(self.engine, lease, **how, backoff_seconds=float(BACKOFF_SECONDS))

        if job := self._end(lease, how["outcome"], fail, fate):
            job.fail(self.model.now, retry=retry)
            assert self.said == job.state

    @rule(lease=leases, fate=FATE)
    def release(self, lease: Lease, fate: str = WELL) -> None:
        if job := self._end(lease, "release", lambda: queue.release(self.engine, lease), fate):
            job.release(self.model.now)
            assert self.said == job.state

    @rule(hundreds=st.integers(1, 7))
    def time_passes(self, hundreds: int) -> None:
        self.model.now += 100 * hundreds
        with transaction(self.engine) as session:
            session.execute(update(LeaseRow).values(expires_at=LeaseRow.expires_at - 100.0 * hundreds))
            session.execute(update(Job).values(not_before=Job.not_before - 100.0 * hundreds))

    @rule(lease=leases)
    def fall_silent(self, lease: Lease) -> None:
        """The worker has not spoken for a lease and its grace, and nobody has noticed yet."""
        job = self.model.jobs.get(lease.job_id)
        if job is not None and job.owner == lease:
            job.expires_at = self.model.now - 100
            with transaction(self.engine) as session:
                mine = update(LeaseRow).where(LeaseRow.job_id == lease.job_id)
                session.execute(mine.values(expires_at=db_now() - 100.0))

    @precondition(lambda self: self.model.expired())
    @rule(fate=FATE)
    def reconcile(self, fate: str = WELL) -> None:
        due = self.model.expired()
        given = {"grace_seconds": float(GRACE_SECONDS), "backoff_seconds": float(BACKOFF_SECONDS)}
        released = self._ask(fate, lambda: queue.release_expired(self.engine, **given))
        assert released == (due[1:] if fate == "loses its answer" else due)
        for job_id in due:
            self.model.jobs[job_id].expire(self.model.now)

    @rule(which=st.integers(0, 5), verb=st.sampled_from(["cancel", "pause", "resume", "retry", "retry"]), fate=FATE)
    def wish(self, which: int, verb: str, fate: str = WELL) -> None:
        job_id = sorted(self.model.jobs)[which % len(self.model.jobs)]
        job, now = self.model.jobs[job_id], self.model.now
        allow: dict[str, Callable[[], bool]] = {
            "cancel": job.cancel,
            "pause": job.pause,
            "resume": lambda: job.resume(now),
            "retry": lambda: job.retry(now, is_replaced=self.model.is_replaced(job_id)),
        }
        if allow[verb]():
            self._ask(fate, lambda: getattr(queue, verb)(self.engine, [job_id]))
        else:
            with pytest.raises(StateError):
                getattr(queue, verb)(self.engine, [job_id])

    @rule(which=st.integers(0, 5), fate=FATE)
    def extend(self, which: int, fate: str = WELL) -> None:
        job_id = sorted(self.model.jobs)[which % len(self.model.jobs)]
        job, before = self.model.jobs[job_id], self.model.jobs[job_id].budget

        def extend() -> None:
            queue.extend(self.engine, [job_id], max_tokens=2 * before)

        is_allowed = job.extend(self.model.now)
        if is_allowed and fate != "loses its answer":
            self._ask(fate, extend)
            return
        with pytest.raises(StateError, match=f"has a budget of {2 * before:,}" if is_allowed else None):
            self._ask(fate, extend)  # what was extended already is not extended twice

    @rule(fate=FATE)
    def hold_the_sweep(self, fate: str = WELL) -> None:
        """Pause the sweep, see that nothing of it waits any more, and let it go on."""
        with reading(self.engine) as session:
            sweep_id = session.scalars(select(SweepRow.id).where(SweepRow.name == "s")).one()
        others = [job_id for job_id in self.model.waiting() if self.model.jobs[job_id].sweep != "s"]
        self._ask(fate, lambda: queue.pause_sweep(self.engine, sweep_id))
        assert queue.waiting(self.engine, limit=99) == others
        assert others or self._claimer(self._token())() is None
        self._ask(fate, lambda: queue.resume_sweep(self.engine, sweep_id))

    @invariant()
    def the_database_is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        with reading(self.engine) as session:
            rows = {job.id: job for job in session.scalars(select(Job))}
            held = {Lease(row.job_id, row.attempt, row.token) for row in session.scalars(select(LeaseRow))}
            curves = {
                tuple(row)
                for table in (CurvePoint, LensPointRow)
                for row in session.execute(select(table.job_id, table.tokens_seen))
            }
            columns = select(CheckpointRow.job_id, CheckpointRow.tokens_seen, CheckpointRow.attempt)
            checkpoints = {tuple(row) for row in session.execute(columns)}
            of_family = select(MeasuredFamily.job_id, MeasuredFamily.family, MeasuredFamily.state)
            families = {tuple(row) for row in session.execute(of_family)}
            scores = sorted(tuple(row) for row in session.execute(select(ScoreRow.job_id, ScoreRow.family)))
        jobs = self.model.jobs
        assert rows.keys() == jobs.keys()
        for job_id, job in jobs.items():
            row = rows[job_id]
            assert (row.state, row.desired, row.attempt) == (job.state, job.desired, job.attempt)
            if job.kind != "evaluate":
                budget = json.loads(row.config)["training"]["max_tokens"]
                assert (row.max_tokens, budget) == (job.budget, job.budget)
            assert (row.failures, row.preemptions, row.lost_in_row) == (job.failures, job.preemptions, job.lost)
        assert held == self.model.owners()
        assert curves == {(job_id, at) for job_id, job in jobs.items() for at in job.curve}
        assert checkpoints == {(job_id, *at) for job_id, job in jobs.items() for at in job.checkpoints}
        told = {(job_id, *one) for job_id, job in jobs.items() for one in job.families.items()}
        assert families == told
        assert scores == sorted((job_id, family) for job_id, family, how in told if how == "measured"), "each once"
        assert queue.waiting(self.engine, limit=99) == self.model.waiting()

    @invariant()
    def every_promise_holds(self) -> None:
        assert broken_promises(self.engine) == []
