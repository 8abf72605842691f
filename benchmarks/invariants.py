"""Check the invariants of a finished queue: reads the database and the checkpoints, nothing else.

    python -m benchmarks.invariants DATABASE_URL

It shares no code with the queue: plain SQL, and the sums of files. Prints what it looked at and every invariant that is
broken; exit status 1 if there is one.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import create_engine, text

OVER = ("succeeded", "failed", "cancelled")
RESULTS = ("converged", "max_tokens", "not_learning", "diverged")
KEPT = 2
"""The newest checkpoints of an attempt that must be on disk; older ones may be gone."""
_QUERIES = {
    "jobs": "SELECT jobs.id, sweep_id, state, attempt, kind, sae_id, config, evaluation FROM jobs"
    " JOIN sweeps ON sweeps.id = sweep_id ORDER BY jobs.id",
    "attempts": "SELECT job_id, attempt, token, started_at, ended_at, outcome, tokens_start FROM attempts"
    " ORDER BY job_id, attempt",
    "leases": "SELECT job_id, attempt, token FROM leases",
    "results": "SELECT job_id, attempt, token, outcome, tokens_seen, artifact_uri FROM results",
    "points": "SELECT job_id, attempt, tokens_seen FROM curve_points ORDER BY job_id, attempt, tokens_seen",
    "checkpoints": "SELECT job_id, attempt, tokens_seen, uri, sha256 FROM checkpoints"
    " ORDER BY job_id, attempt, tokens_seen DESC",
    "families": "SELECT job_id, family, state, attempt, uri FROM measured_families",
    "scores": "SELECT job_id, sae_id, sae_attempt, family, metric, variant FROM scores",
    "lenses": "SELECT job_id, attempt, outcome, sha256, uri FROM lenses WHERE job_id IS NOT NULL",
    "lens_points": "SELECT job_id, attempt, tokens_seen FROM lens_points ORDER BY job_id, attempt, tokens_seen",
    "saes": "SELECT job_id, id, attempt FROM saes WHERE job_id IS NOT NULL",
    "events": "SELECT job_id, sweep_id, at, kind, data FROM events ORDER BY id",
}


class QueueRows(NamedTuple):
    """What the database holds of a queue, by job."""

    jobs: dict[int, Any]
    attempts: dict[int, list[Any]]
    leases: dict[int, list[Any]]
    results: dict[int, list[Any]]
    points: dict[int, list[Any]]
    checkpoints: dict[int, list[Any]]
    families: dict[int, list[Any]]
    scores: dict[int, list[Any]]
    lenses: dict[int, list[Any]]
    lens_points: dict[int, list[Any]]
    saes: dict[int, list[Any]]
    events: dict[int, list[Any]]
    enqueued: dict[int, int]
    """Training jobs that were put in, by sweep."""


def read(url: str) -> QueueRows:
    """Read a database."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = {name: connection.execute(text(query)).all() for name, query in _QUERIES.items()}
    engine.dispose()
    by_job: dict[str, dict[int, list[Any]]] = {name: defaultdict(list) for name in rows}
    for name in rows:
        for row in rows[name] if name != "jobs" else ():
            by_job[name][row.job_id].append(row)
    enqueued: Counter[int] = Counter()
    for row in rows["events"]:
        if row.kind == "sweep_enqueued":
            data = json.loads(row.data) if isinstance(row.data, str) else row.data
            enqueued[row.sweep_id] += data["added"]
    own = {name: found for name, found in by_job.items() if name != "jobs"}
    return QueueRows(**own, jobs={row.id: row for row in rows["jobs"]}, enqueued=enqueued)


def violations(db: QueueRows) -> Iterator[str]:
    """Yield every broken promise."""
    yield from _jobs_in_are_jobs_out(db)
    of_any = (_is_over, _attempts_in_order, _no_lease, _cancelled_stays, _on_disk)
    of_kind = {
        "train": (_one_result, _curve_grows, _evaluated_as_asked),
        "evaluate": (_measured_once,),
        "lens": (_one_lens, _curve_grows),
    }
    for job in db.jobs.values():
        for check in (*of_any, *of_kind[job.kind]):
            yield from (f"job {job.id}: {told}" for told in check(db, job))
    for name in ("attempts", "leases", "results", "points", "checkpoints", "families", "scores", "lenses"):
        for job_id in getattr(db, name):
            if job_id not in db.jobs:
                yield f"job {job_id}: {name} without a job"


def _jobs_in_are_jobs_out(db: QueueRows) -> Iterator[str]:
    held = Counter(job.sweep_id for job in db.jobs.values() if job.kind == "train")
    for sweep_id in sorted(held.keys() | db.enqueued.keys()):
        if held[sweep_id] != db.enqueued[sweep_id]:
            yield f"sweep {sweep_id}: {db.enqueued[sweep_id]} jobs in, {held[sweep_id]} there"


def _is_over(db: QueueRows, job: Any) -> Iterator[str]:
    if job.state not in OVER:
        yield f"is {job.state}, not over"
    entered = sum(event.kind == "enqueued" for event in db.events[job.id])
    if entered != 1:
        yield f"entered the queue {entered} times"


def _one_result(db: QueueRows, job: Any) -> Iterator[str]:
    found, attempts = db.results[job.id], {row.attempt: row for row in db.attempts[job.id]}
    ends = [row for row in attempts.values() if row.outcome in RESULTS]
    told = sum(event.kind == "succeeded" for event in db.events[job.id])
    wanted = int(job.state == "succeeded")
    ended = wanted + sum(
        event.kind in ("extended", "deleted") and '"outcome": null' not in _text(event) for event in db.events[job.id]
    )
    for what, count, due in (
        ("results", len(found), wanted), ("attempts with a result", len(ends), ended), ("successes told", told, ended),
    ):  # fmt: skip
        if count != due:
            yield f"is {job.state} with {count} {what}"
    for result in found:
        if result.attempt != job.attempt:
            yield f"has the result of attempt {result.attempt}, its last is {job.attempt}"
        by = attempts.get(result.attempt)
        if by is None or (by.token, by.outcome) != (result.token, result.outcome):
            yield f"attempt {result.attempt} did not make its result"


def _one_lens(db: QueueRows, job: Any) -> Iterator[str]:
    """Of a job that trains a lens: one row, of its last attempt where it succeeded, and its folder whole."""
    if any(event.kind == "deleted" for event in db.events[job.id]):
        return
    found, attempts = db.lenses[job.id], {row.attempt: row for row in db.attempts[job.id]}
    if len(found) != 1:
        yield f"has {len(found)} lenses"
    for lens in found:
        by = attempts.get(lens.attempt)
        if (job.state == "succeeded") != (
            lens.attempt == job.attempt and by is not None and by.outcome == lens.outcome
        ):
            yield f"is {job.state} with a lens of attempt {lens.attempt}, {lens.outcome}; its last is {job.attempt}"
        if lens.uri is not None and (wrong := broken(Path(lens.uri), lens.sha256)):
            yield f"its lens: {wrong}"
        if job.state == "succeeded" and lens.uri is None and lens.outcome != "diverged":
            yield "has no lens"
    if sum(row.outcome in RESULTS for row in attempts.values()) != int(job.state == "succeeded"):
        yield f"is {job.state} with another number of attempts that made a lens"


def _evaluated_as_asked(db: QueueRows, job: Any) -> Iterator[str]:
    """Of a training whose sweep says what is measured: one evaluation of its SAE."""
    if job.evaluation is None:
        return
    for sae in db.saes[job.id]:
        mine = [one for one in db.jobs.values() if one.sae_id == sae.id and one.sweep_id == job.sweep_id]
        found = sum(json.loads(one.config)["sae"]["attempt"] == sae.attempt for one in mine)
        if found != 1:
            yield f"its SAE has {found} evaluations"


def _measured_once(db: QueueRows, job: Any) -> Iterator[str]:
    """Of an evaluation: every family it was to measure, each by one attempt, and scores of these alone."""
    if any(event.kind == "deleted" for event in db.events[job.id]):
        return
    families = {row.family: row for row in db.families[job.id]}
    wanted, measured = (
        set(json.loads(job.config)["plan"]["metrics"]),
        {family for family, row in families.items() if row.state == "measured"},
    )
    is_whole = measured == wanted
    # A cancel that comes between the last family and the end finds all of them, and they stay.
    if is_whole != (job.state == "succeeded") and not (is_whole and job.state == "cancelled"):
        yield f"is {job.state}, and measured {sorted(measured)} of {sorted(wanted)}"
    ends = sum(row.outcome == "evaluated" for row in db.attempts[job.id])
    if ends != int(job.state == "succeeded"):
        yield f"is {job.state} with {ends} attempts that measured all"
    if stray := {row.family for row in db.scores[job.id]} - measured:
        yield f"has scores of {sorted(stray)}, which are not measured"
    stored = Counter(json.loads(_text(event))["family"] for event in db.events[job.id] if event.kind == "measured")
    for family, times in stored.items():
        if times > 1:
            yield f"stored {family} {times} times"
    attempt = json.loads(job.config)["sae"]["attempt"]
    if any((row.sae_id, row.sae_attempt) != (job.sae_id, attempt) for row in db.scores[job.id]):
        yield "has scores of another SAE"


def _text(event: Any) -> str:
    return event.data if isinstance(event.data, str) else json.dumps(event.data)


def _attempts_in_order(db: QueueRows, job: Any) -> Iterator[str]:
    rows = db.attempts[job.id]
    if [row.attempt for row in rows] != [*range(1, job.attempt + 1)]:
        yield f"has attempts {[row.attempt for row in rows]}, says it had {job.attempt}"
    for row in rows:
        if row.ended_at is None or row.ended_at < row.started_at:
            yield f"attempt {row.attempt} has no end after its start"
    for before, after in pairwise(rows):
        if before.ended_at is not None and after.started_at < before.ended_at:
            yield f"attempt {after.attempt} began before attempt {before.attempt} had ended"
    if len({row.token for row in rows}) != len(rows):
        yield "two attempts share a token"


def _no_lease(db: QueueRows, job: Any) -> Iterator[str]:
    for lease in db.leases[job.id]:
        yield f"a lease of attempt {lease.attempt} is left, it is {job.state}"


def _curve_grows(db: QueueRows, job: Any) -> Iterator[str]:
    points = db.points[job.id] or db.lens_points[job.id]
    for before, after in pairwise(points):
        if after.tokens_seen <= before.tokens_seen:
            yield f"the curve goes back from {before.tokens_seen} to {after.tokens_seen} tokens"
    begun = {row.attempt: row.tokens_start for row in db.attempts[job.id] if row.tokens_start is not None}
    for point in points:
        later = [start for attempt, start in begun.items() if attempt > point.attempt]
        if later and point.tokens_seen > min(later):
            yield f"a point of attempt {point.attempt} at {point.tokens_seen} is beyond where its successor began"
        if point.attempt not in begun or point.tokens_seen <= begun[point.attempt]:
            yield f"attempt {point.attempt} has a point at {point.tokens_seen}, before it began"
    for result in db.results[job.id]:
        if points and points[-1].tokens_seen > result.tokens_seen:
            yield f"the curve goes on after the result at {result.tokens_seen} tokens"


def _cancelled_stays(db: QueueRows, job: Any) -> Iterator[str]:
    asked: float | None = None
    moments = [(event.at, event.kind) for event in db.events[job.id]]
    for at, kind in sorted([*moments, *((row.started_at, "began") for row in db.attempts[job.id])]):
        if kind in ("cancel", "cancel_asked"):
            asked = at
        elif kind in ("retry", "resume"):
            asked = None
        elif kind == "began" and asked is not None and at > asked:
            yield "an attempt began after its cancel was asked"


def _on_disk(db: QueueRows, job: Any) -> Iterator[str]:
    kept: Counter[int] = Counter()
    for row in db.checkpoints[job.id]:
        kept[row.attempt] += 1
        if (kept[row.attempt] <= KEPT or Path(row.uri).exists()) and (wrong := broken(Path(row.uri), row.sha256)):
            yield f"checkpoint at {row.tokens_seen} tokens: {wrong}"
    for result in db.results[job.id]:
        if result.artifact_uri is None and result.outcome != "diverged":
            yield "has no final artifact"
        elif result.artifact_uri is not None and (wrong := broken(Path(result.artifact_uri))):
            yield f"final artifact: {wrong}"
    for row in db.families[job.id]:
        if row.uri is not None and (wrong := broken(Path(row.uri))):
            yield f"files of {row.family}: {wrong}"


def broken(folder: Path, sha256: str | None = None) -> str | None:
    """Return what is wrong with a folder and its manifest; None if nothing is."""
    try:
        manifest = (folder / "manifest.json").read_bytes()
        sums = json.loads(manifest)["sha256"]
        other = [name for name, wanted in sums.items() if _sha256((folder / name).read_bytes()) != wanted]
    except (OSError, ValueError, KeyError) as error:
        return f"{folder} is not whole ({type(error).__name__}: {error})"
    if other or not sums:
        return f"{folder}: {', '.join(other) or 'no file'} is not what the manifest says"
    if sha256 not in (None, _sha256(manifest)):
        return f"{folder}: its manifest is not the one that was recorded"
    return None


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("database", help="its URL")
    db = read(options.parse_args().database)
    found = [*violations(db)]
    looked = {name: len(rows) for name, rows in db._asdict().items() if name == "jobs"}
    several = ("attempts", "results", "points", "checkpoints", "families", "scores", "events")
    looked |= {name: sum(len(rows) for rows in getattr(db, name).values()) for name in several}
    for told in found:
        print(f"BROKEN: {told}")
    print(f"checker: {', '.join(f'{count:,} {name}' for name, count in looked.items())}; {len(found)} promises broken")
    return int(bool(found))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
