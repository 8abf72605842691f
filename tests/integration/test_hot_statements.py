"""What workers and people send all day, as it is really sent: none of it may read a growing table from end to end."""

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Engine, event

from benchmarks.filled_database import finished_jobs
from orchestrator import dispatch, queue, results
from orchestrator.cli.commands.status import _read
from orchestrator.settings import Settings
from tests.queue_shorthand import WORKER, claim, enqueue, point, ref, result, run_out
from worker.supervisor.supervisor import Supervisor

FINISHED, QUEUED = 20_000, 300
GROWING = {"jobs", "attempts", "results", "curve_points", "checkpoints", "events", "convergence"}
"""Sweeps and leases are few; all else grows as long as a laboratory works."""
VERBS = re.compile(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)")


class Sent(NamedTuple):
    """A statement, and what the database meant to do for it."""

    statement: str
    plan: str
    cache: str
    """CACHE_HIT, CACHE_MISS or, where SQLAlchemy must compile it every time, NO_CACHE_KEY."""

    def read_whole(self) -> set[str]:
        """Return the tables that are read from end to end, by an index or without."""
        found = {table for table, _ in re.findall(r"^\s*SCAN (\w+)( USING .*)?$", self.plan, re.M)}
        found |= set(re.findall(r"Seq Scan on (\w+)", self.plan))
        walks = re.findall(r"Index (?:Only )?Scan (?:Backward )?using \w+ on (\w+).*\n\s*(\S+)", self.plan + "\n-")
        stops_early = "Limit" in self.plan
        return found | {table for table, then in walks if then != "Index" and not stops_early}


class Wire:
    """Every statement that goes to the database, explained there and then, within its transaction."""

    def __init__(self, engine: Engine) -> None:
        self._sent: list[Sent] = []
        self._explain = "EXPLAIN" if engine.name == "postgresql" else "EXPLAIN QUERY PLAN"

    def listen(self, _c: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if VERBS.match(statement):
            other = cursor.connection.cursor()
            other.execute(f"{self._explain} {statement}", parameters[0] if many else parameters)
            plan = "\n".join(str(row[-1]) for row in other.fetchall())
            self._sent.append(Sent(statement, plan, context.cache_hit.name))
            other.close()

    def during(self, act: Callable[[], object]) -> list[Sent]:
        self._sent.clear()
        act()
        assert self._sent
        return [*self._sent]

    def spares_what_grows(self, act: Callable[[], object]) -> list[Sent]:
        sent = self.during(act)
        for one in sent:
            assert not one.read_whole() & GROWING, f"{one.statement}\n{one.plan}"
        return sent


@pytest.fixture
def wire(engine: Engine) -> Iterator[Wire]:
    """Fill the tables as a year would, and listen."""
    enqueue(engine, QUEUED)
    finished_jobs(engine, FINISHED)
    wire = Wire(engine)
    event.listen(engine, "before_cursor_execute", wire.listen)
    yield wire
    event.remove(engine, "before_cursor_execute", wire.listen)


def companion(engine: Engine, leader: queue.Claim) -> queue.Claim | None:
    return queue.claim_companion(engine, WORKER, leader=leader, token=uuid.uuid4().hex, lease_seconds=60.0)


def is_sorted(plan: str) -> bool:
    return "TEMP B-TREE FOR ORDER BY" in plan or re.search(r"\bSort\b", plan) is not None


def test_the_wire_knows_a_whole_table_when_it_sees_one(engine: Engine, wire: Wire) -> None:
    """A full read, by the table or by an index, is seen; so is a sort."""
    from sqlalchemy import func, select

    from orchestrator.database.engine import reading
    from orchestrator.database.models import Job

    def look(query: Any) -> Sent:
        with reading(engine) as session:
            return wire.during(lambda: session.execute(query).all())[0]

    assert look(select(Job.id).where(Job.reason == "none")).read_whole() == {"jobs"}
    assert look(select(Job.state, func.count()).group_by(Job.state)).read_whole() == {"jobs"}
    assert look(select(Job.id).where(Job.id == 1)).read_whole() == set()
    assert is_sorted(look(select(Job.id).where(Job.state == "failed").order_by(Job.reason)).plan)


def test_claims_read_the_queue_by_their_index(engine: Engine, wire: Wire) -> None:
    leader = claim(engine)
    for index, act in (
        ("ix_jobs_claim", lambda: claim(engine)),
        ("ix_jobs_stream", lambda: companion(engine, leader)),
        ("ix_jobs_claim", lambda: queue.waiting(engine, limit=64)),
    ):
        (choice,) = (one for one in wire.spares_what_grows(act) if "ORDER BY jobs.priority" in one.statement)
        assert index in choice.plan, choice.plan
        assert not is_sorted(choice.plan), choice.plan


def test_claim_and_heartbeat_are_compiled_once(engine: Engine, wire: Wire) -> None:
    """Compiling was half the work of a claim: the clock in a statement kept it from being remembered."""
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=1)
    for act in (
        lambda: claim(engine),
        lambda: queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=2),
    ):
        assert {one.cache for one in wire.during(act)} == {"CACHE_HIT"}


def test_an_attempt_from_its_start_to_every_end(engine: Engine, wire: Wire) -> None:
    first, second, third, fourth = (claim(engine).lease for _ in range(4))
    for act in (
        lambda: queue.heartbeat(engine, first, lease_seconds=60.0, tokens_seen=5),
        lambda: queue.begin(engine, first, {"n_latents": 8}, 0),
        lambda: queue.record(engine, first, [point(64)]),
        lambda: queue.checkpointed(engine, first, ref(64)),
        lambda: queue.finish(engine, first, result()),
        lambda: queue.fail(engine, second, error="Boom", exit_code=1, outcome="failed", retry=True),
        lambda: queue.release(engine, third),
    ):
        wire.spares_what_grows(act)
    run_out(engine, fourth.job_id)
    wire.spares_what_grows(lambda: queue.release_expired(engine, grace_seconds=1.0))
    assert results.attempts(engine, fourth.job_id)[0].outcome == "lost"


def test_looks_of_an_idle_worker(engine: Engine, settings: Settings, wire: Wire) -> None:
    wire.spares_what_grows(lambda: dispatch.reconcile(engine, settings))
    supervisor = Supervisor(settings, engine, worker=WORKER, threads=1, say=print)
    wire.spares_what_grows(supervisor._empty)


def test_wishes_and_one_more_job(engine: Engine, wire: Wire) -> None:
    for wish in (queue.pause, queue.resume, queue.cancel, queue.retry):
        wire.spares_what_grows(lambda wish=wish: wish(engine, [5]))  # type: ignore[misc]
    wire.spares_what_grows(lambda: enqueue(engine, 1, start=QUEUED))


def test_one_job_is_read_by_its_id(engine: Engine, wire: Wire) -> None:
    job = claim(engine).lease.job_id
    for read in (results.curve, results.attempts, results.events, results.checkpoints, results.convergence):
        wire.spares_what_grows(lambda read=read: read(engine, job))  # type: ignore[misc]
    wire.spares_what_grows(lambda: results.jobs(engine, ids=[job]))
    wire.spares_what_grows(lambda: results.find(engine, [str(job)]))
    wire.spares_what_grows(lambda: results.workers(engine))


def test_status_counts_by_an_index_and_reads_what_it_shows(engine: Engine, wire: Wire) -> None:
    claim(engine)
    counted, *others = wire.during(lambda: _read(engine, (), None, limit=50))
    assert "count(*)" in counted.statement
    assert "COVERING INDEX" in counted.plan or "Index Only Scan" in counted.plan
    for one in others:
        assert not one.read_whole() & GROWING, f"{one.statement}\n{one.plan}"
        if "priority DESC" in one.statement:
            assert "ix_jobs_claim" in one.plan, one.plan
    wire.spares_what_grows(lambda: results.jobs(engine, states=["succeeded"], limit=50))
