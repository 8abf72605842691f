"""Protocol bugs to plant: each changes the text of a few real functions, and the suite must catch every one."""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Engine

from orchestrator.database import engine as database
from orchestrator.queue import (
    claims,
    control,
    eligibility,
    evaluations,
    expiry,
    fencing,
    heartbeats,
    outcomes,
)
from orchestrator.queue.lens import finishing, submission


class Edit(NamedTuple):
    """One change to the text of a function; the old words must stand there exactly once."""

    function: Callable[..., Any]
    old: str
    new: str


NO_FENCE = Edit(
    fencing.held_by,
    "LeaseRow.job_id == lease.job_id, LeaseRow.attempt == lease.attempt, LeaseRow.token == lease.token",
    "LeaseRow.job_id == lease.job_id,",
)
STATE_ONLY = Edit(fencing.move, "Job.attempt == lease.attempt, ", "")
ID_ONLY = Edit(fencing.move, 'Job.attempt == lease.attempt, Job.state == "running"', "")
WITHOUT_A_LEASE = Edit(fencing.close_attempt, "if seen is None:\n        return None", "seen = seen or 0")
ANY_STATE = Edit(eligibility.may_run_now, 'Job.state == "queued", ', "")
NO_COMPARE = Edit(claims._taking, ', Job.state == "queued"', "")
SECOND_TRANSACTION = "    with transaction(engine) as session:\n        _store(session, lease, result, analysis)"
WORKERS_CLOCK = "import time; import sqlalchemy; now = sqlalchemy.literal(time.time())"

PLANTED: dict[str, tuple[Edit, ...]] = {
    "state-only guard": (NO_FENCE, STATE_ONLY),
    "id-only guard": (NO_FENCE, ID_ONLY, WITHOUT_A_LEASE),
    "unfenced heartbeat": (Edit(heartbeats.heartbeat, "held_by(lease)", "LeaseRow.job_id == lease.job_id"),),
    "unfenced curve": (Edit(heartbeats.record, "        hold(session, lease)\n", ""),),
    "unfenced checkpoint": (Edit(heartbeats.checkpointed, "        hold(session, lease)\n", ""),),
    "claim without state check": (ANY_STATE, NO_COMPARE),
    "claim not adopted": (Edit(claims._take, "_adopted(session, token) or ", ""),),
    "claim forgets the backoff": (Edit(eligibility._obstacles, "Job.not_before > db_now()", "Job.not_before < 0"),),
    "poison may share a trainer": (Edit(eligibility.may_share, ", Job.failures == 0, Job.lost_in_row <= 1", ""),),
    "companion from another place": (
        Edit(claims._first_companion, '== bindparam("its_cursor")', '>= 0 * bindparam("its_cursor")'),
    ),
    "finish not idempotent": (Edit(outcomes.finish, "_finished_before(session, lease, result.outcome)", "False"),),
    "finish in two transactions": (
        Edit(outcomes.finish, "        _store(session, lease, result, analysis)", SECOND_TRANSACTION),
    ),
    "cancel wins over finish": (
        Edit(outcomes.finish, '"succeeded", reason', '"cancelled" if wanted == "cancel" else "succeeded", reason'),
    ),
    "ending counted twice": (Edit(fencing.state_after, "if ended not in outcomes:", "if True:"),),
    "failure forgets the wish": (Edit(fencing.landing, 'desired == "cancel"', "False"),),
    "lease outlives its attempt": (
        Edit(
            fencing.close_attempt,
            "delete(LeaseRow).where(held_by(lease)).returning(LeaseRow.tokens_seen)",
            "select(LeaseRow.tokens_seen).where(held_by(lease))",
        ),
    ),
    "begin keeps the old tail": (Edit(heartbeats.begin, "table.tokens_seen > tokens_start", "False"),),
    "checkpoint forgives nothing": (Edit(heartbeats.checkpointed, "lost_in_row=0", "lost_in_row=Job.lost_in_row"),),
    "expiry ignores a cancel": (Edit(expiry._put_back, 'desired == "cancel"', "False"),),
    "expiry without grace": (
        Edit(expiry.release_expired, "db_now() - grace_seconds", "db_now()"),
        Edit(expiry._expire, "db_now() - grace_seconds", "db_now()"),
    ),
    "cancel does not wait for the worker": (
        Edit(control.cancel, 'if state == "running":', 'if state == "running" and False:'),
    ),
    "retry beside its replacement": (
        Edit(control._apply, "        _leave_replaced(session, found)", "        pass"),
    ),
    "unfenced scores": (Edit(evaluations.record_scores, "        hold(session, lease)\n", ""),),
    "family measured twice": (
        Edit(evaluations.record_scores, '_state(session, lease, family) == "measured"', "False"),
    ),
    "failure over a measured family": (
        Edit(evaluations.record_failed_family, '_state(session, lease, family) == "measured"', "False"),
    ),
    "evaluated with a family missing": (
        Edit(evaluations.finish_evaluation, "missing = _missing(session, lease.job_id)", "missing = {}"),
    ),
    "begin keeps the tail of a lens": (
        Edit(heartbeats.begin, 'LensPointRow if kind == "lens" else CurvePoint', "CurvePoint"),
    ),
    "a lens of another attempt": (Edit(finishing.finish_lens, "attempt=lease.attempt,", "attempt=1,"),),
    "a lens without a lease": (
        Edit(finishing.finish_lens, "return state_after(session, lease, result.outcome)", "pass"),
        WITHOUT_A_LEASE,
        NO_FENCE,
        ID_ONLY,
    ),
    "a lens that was cancelled is there": (
        Edit(submission._there, 'Job.state.not_in(("failed", "cancelled"))', 'Job.state != "failed"'),
    ),
    "two-step reaper": (
        Edit(
            expiry._expire,
            "LeaseRow.job_id == job_id, LeaseRow.expires_at < db_now() - grace_seconds",
            "LeaseRow.job_id == job_id",
        ),
    ),
    "claim waits for a frozen claim": (Edit(claims._first, "skip_locked=True, ", ""),),
    "reaper waits for a frozen worker": (Edit(expiry._expire, "skip_locked=True", ""),),
    "now() for clock_timestamp()": (Edit(database._now_postgres, "clock_timestamp()", "now()"),),
    "ceiling without a lock": (Edit(claims._capped, ".with_for_update(key_share=True)", ""),),
    "SQLite begins without its lock": (Edit(database._begin_sqlite, '"BEGIN IMMEDIATE" if write else ', ""),),
    "the worker's clock": (Edit(heartbeats.heartbeat, "now = db_now()", WORKERS_CLOCK),),
}  # fmt: skip


@contextmanager
def planted(name: str, engine: Engine) -> Iterator[None]:
    """Plant a bug for a while."""
    with ExitStack() as stack:
        for edit in PLANTED[name]:
            stack.enter_context(edited(edit, engine))
        yield


@contextmanager
def edited(edit: Edit, engine: Engine) -> Iterator[None]:
    """Change a function's text for a while, wherever its name has been imported to."""
    function: Any = inspect.unwrap(edit.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"{function.__qualname__} has changed: plant this bug anew in\n{source}"
    body = source[source.index("def ") :].replace(edit.old, edit.new)
    made: dict[str, Any] = {}
    exec(compile(body, function.__code__.co_filename, "exec"), dict(function.__globals__), made)
    real = function.__code__
    _put(edit.function, made[function.__name__].__code__, engine)
    try:
        yield
    finally:
        _put(edit.function, real, engine)


def _put(function: Any, code: Any, engine: Engine) -> None:
    inspect.unwrap(function).__code__ = code
    for built in (*vars(eligibility).values(), *vars(claims).values()):  # statements are built once, and of one another
        if hasattr(built, "cache_clear"):
            built.cache_clear()
    engine.clear_compiled_cache()
