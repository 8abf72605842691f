"""What of a data folder nobody needs any more: found first, then removed."""

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, delete, select

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, CheckpointRow, Job
from orchestrator.job_states import TERMINAL
from orchestrator.settings import Settings
from orchestrator.storage import activation_caches, cache_rows

TEMPORARY_SECONDS = 3600.0
"""A half-written file that has not grown for so long has lost its writer."""
Kind = Literal["temporary", "checkpoint", "cache", "tokens"]


@dataclass(frozen=True)
class Item:
    """Something that can go."""

    kind: Kind
    path: Path
    bytes: int
    why: str
    idle_seconds: float = 0.0
    """How long nothing has been written to it, at least."""


def find(engine: Engine, settings: Settings, *, older_than: float, all_caches: bool = False) -> list[Item]:
    """Return what may go: nothing that a running, queued or paused job uses.

    Half-written files an hour old; checkpoints, not the final autoencoder, of succeeded jobs, and of failed or
    cancelled ones after `older_than` seconds, until when `orch retry` goes on from them; caches unused for that long,
    or over the quota, or with `all_caches` every one that no process uses; token files that old which no job needs
    that is not over.
    """
    home, artifacts = settings.home, settings.artifacts_folder
    found = [*_temporary(home, artifacts), *_checkpoints(engine, artifacts, older_than)]
    return [*found, *_caches(settings, older_than, all_caches=all_caches), *_tokens(engine, home, older_than)]


def remove(engine: Engine, items: Sequence[Item]) -> list[Item]:
    """Delete what was found, unless it has come into use since; return what is gone."""
    gone = [item for item in items if _removed(engine, item)]
    cache_rows.forget(engine, [str(item.path) for item in gone if item.kind == "cache"])
    return gone


def _temporary(home: Path, artifacts: Path) -> Iterator[Item]:
    patterns = {
        home / "activations": ("*.partial", "*/*.partial"),
        home / "tokens": ("*.partial",),
        artifacts: ("*/*/.*.partial",),
    }
    places = [(path, place) for place, globs in patterns.items() for glob in globs for path in place.glob(glob)]
    for path, place in sorted(places):
        if _age(path) > TEMPORARY_SECONDS and not _is_packed(path) and _is_ours(path, place):
            yield Item(
                "temporary",
                path,
                activation_caches.size(path),
                "half-written, and its writer is gone",
                TEMPORARY_SECONDS,
            )


def _checkpoints(engine: Engine, artifacts: Path, older_than: float) -> Iterator[Item]:
    ended = select(Job.id, Job.state, db_now() - Job.finished_at).where(Job.state.in_(TERMINAL)).order_by(Job.id)
    with reading(engine) as session:
        jobs = session.execute(ended).all()
    for job_id, state, seconds in jobs:
        if state != "succeeded" and seconds < older_than:
            continue
        folders = (artifacts / str(job_id)).glob("*/*")
        for path in sorted(p for p in folders if p.name.isdecimal() and p.is_dir() and _is_ours(p, artifacts)):
            yield Item("checkpoint", path, activation_caches.size(path), f"job {job_id} has {state}")


def _caches(settings: Settings, older_than: float, *, all_caches: bool) -> Iterator[Item]:
    kept = activation_caches.kept(activation_caches.folder(settings.home))
    used = sum(one.bytes for one in kept)
    for one in kept:
        seconds = time.time() - one.used_at
        if all_caches:
            why = "no process uses it"
        elif seconds > older_than:
            why = f"unused for {seconds / 86_400:.1f} days"
        elif used > settings.cache_limit:
            why = f"over the quota of {settings.cache_bytes}"
        else:
            continue
        if not activation_caches.in_use(one.path):
            used -= one.bytes
            yield Item("cache", one.path, one.bytes, f"{one.facts.get('model', 'activations')}: {why}")


def _tokens(engine: Engine, home: Path, older_than: float) -> Iterator[Item]:
    needed = _needed_tokens(engine)
    if needed is None:
        return
    for path in sorted((*home.glob("tokens/*.u16"), *home.glob("tokens/*.u32"))):
        if path.stem not in needed and _age(path) > older_than and not _is_packed(path):
            yield Item("tokens", path, activation_caches.size(path), "no job that is not over reads it", older_than)


def _needed_tokens(engine: Engine) -> set[str] | None:
    """Return the names of the token files of jobs that are not over; None where a job has not said which it reads."""
    open_jobs = select(Job.id).where(Job.state.not_in(TERMINAL))
    with reading(engine) as session:
        waiting = set(session.scalars(open_jobs))
        rows = session.execute(select(Attempt.job_id, Attempt.facts).where(Attempt.job_id.in_(open_jobs))).all()
    named = {job_id: str(facts["tokens"]["id"])[:16] for job_id, facts in rows if facts and facts.get("tokens")}
    return set(named.values()) if waiting <= set(named) else None


def _removed(engine: Engine, item: Item) -> bool:
    """Delete an item if what made it garbage is so still; say whether it is gone."""
    if item.kind == "cache":
        return activation_caches.remove(item.path)
    if item.kind == "checkpoint":
        return _unpointed(engine, item) and _deleted(item)
    with _unpacked(item.path) as is_idle:
        if not is_idle or not item.path.exists() or _age(item.path) <= item.idle_seconds:
            return False
        if item.kind == "tokens":
            needed = _needed_tokens(engine)
            if needed is None or item.path.stem in needed:
                return False
        return _deleted(item)


def _unpointed(engine: Engine, item: Item) -> bool:
    """Delete the pointer to a checkpoint, if its job is over still; say whether it was.

    The pointer goes first: a job that is retried meanwhile either keeps both, or finds neither and starts over.
    """
    job_id, attempt, tokens = (int(part) for part in item.path.parts[-3:])
    over = select(Job.id).where(Job.id == job_id, Job.state.in_(TERMINAL)).with_for_update()
    mine = (CheckpointRow.job_id == job_id, CheckpointRow.attempt == attempt, CheckpointRow.tokens_seen == tokens)
    with transaction(engine) as session:
        is_over = session.scalar(over) is not None
        if is_over:
            session.execute(delete(CheckpointRow).where(*mine))
    return is_over


def _deleted(item: Item) -> bool:
    if item.path.is_dir():
        shutil.rmtree(item.path, ignore_errors=True)
        return not item.path.exists()
    with suppress(OSError):
        item.path.unlink()
    with suppress(OSError):  # what is known of a token file, or how far the packing of one had come
        item.path.with_suffix(".json" if item.kind == "tokens" else ".state").unlink()
    return not item.path.exists()


def _is_ours(path: Path, place: Path) -> bool:
    """Say whether no link below a place, which may be one itself, leads to a path: it may lead to anybody's."""
    return path.resolve() == place.resolve() / path.relative_to(place)


def _is_packed(path: Path) -> bool:
    """Say whether a process packs a token file just now."""
    with _unpacked(path) as is_idle:
        return not is_idle


@contextmanager
def _unpacked(path: Path) -> Iterator[bool]:
    """Keep whoever would pack a token file waiting; say whether nobody does: he holds the lock beside it."""
    lock = path.with_suffix(".lock")
    is_idle = True
    with ExitStack() as stack:
        if path.parent.name == "tokens" and lock.exists():
            try:
                fcntl.flock(stack.enter_context(lock.open("r")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                is_idle = False
        yield is_idle


def _age(path: Path) -> float:
    """Return the seconds since a file, or the newest in a folder, was written."""
    newest = 0.0
    for one in (path, *path.rglob("*")):
        with suppress(OSError):
            newest = max(newest, one.stat().st_mtime)
    return time.time() - newest
