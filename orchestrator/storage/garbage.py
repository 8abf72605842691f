"""Find what no job needs any more in a data folder, and remove it."""

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, delete, select

from orchestrator import lenses
from orchestrator.config.lens.facts import LENSES
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, CheckpointRow, Job, LensRow, SaeRow
from orchestrator.job_states import TERMINAL
from orchestrator.settings import Settings
from orchestrator.storage import activation_caches, cache_rows

TEMPORARY_SECONDS = 3600.0
"""A half-written file that has not changed for so long has lost its writer."""
IMPORTED = "saes"
"""Folder of imported SAEs among the artifacts."""
SHARED = "evaluation"
"""Folder of a data folder that holds what evaluations share: what belongs to a model and a text alone."""
Kind = Literal["temporary", "checkpoint", "deleted", "import", "lens", "cache", "tokens", "evaluation"]


@dataclass(frozen=True)
class Item:
    """A file or folder that may be deleted."""

    kind: Kind
    path: Path
    bytes: int
    why: str
    idle_seconds: float = 0.0
    """How long nothing has been written to it, at least."""


def find(engine: Engine, settings: Settings, *, older_than: float, all_caches: bool = False) -> list[Item]:
    """Return what may be deleted: nothing that a running, queued or paused job uses.

    What deleted jobs trained; copies of SAEs whose import was cut off; lenses of no row and no job; half-written files
    an hour old; checkpoints, not the final autoencoder, of succeeded jobs, and of failed or cancelled ones after
    `older_than` seconds, until when `orch retry` goes on from them; caches unused for that long, or over the quota, or
    with `all_caches` every one that no process uses; token files that old which no unfinished job needs; what
    evaluations share and none used so long.
    """
    home, artifacts = settings.home, settings.artifacts_folder
    found = [
        *_temporary(home, artifacts),
        *_of_deleted(engine, artifacts),
        *_cut_off_imports(engine, artifacts),
        *_unnamed_lenses(engine, artifacts),
        *_checkpoints(engine, artifacts, older_than),
    ]
    caches = _caches(settings, older_than, all_caches=all_caches)
    return [*found, *caches, *_tokens(engine, home, older_than), *_shared(home, older_than)]


def remove(engine: Engine, items: Sequence[Item]) -> list[Item]:
    """Delete what was found, unless a job has come to use it since; return what was deleted."""
    deleted = [item for item in items if _remove_item(engine, item)]
    cache_rows.delete_rows(engine, [str(item.path) for item in deleted if item.kind == "cache"])
    return deleted


def _temporary(home: Path, artifacts: Path) -> Iterator[Item]:
    patterns = {
        home / "activations": ("*.partial", "*/*.partial"),
        home / "tokens": ("*.partial",),
        home / SHARED: (".*.partial",),
        artifacts: ("*/*/.*.partial", f"{LENSES}/*.partial"),
    }
    found = [(path, folder) for folder, globs in patterns.items() for glob in globs for path in folder.glob(glob)]
    for path, folder in sorted(found):
        if _age(path) > TEMPORARY_SECONDS and not _is_being_packed(path) and _is_inside(path, folder):
            size = activation_caches.size(path)
            yield Item("temporary", path, size, "half-written, and its writer is gone", TEMPORARY_SECONDS)


def _of_deleted(engine: Engine, artifacts: Path) -> Iterator[Item]:
    """Yield what deleted jobs trained. Their logs stay: jobs that shared a trainer share its log."""
    with reading(engine) as session:
        jobs = session.scalars(select(Job.id).where(Job.hidden == "deleted").order_by(Job.id)).all()
    for job_id in jobs:
        folder = artifacts / str(job_id)
        if folder.is_dir() and _is_inside(folder, artifacts):
            yield Item("deleted", folder, activation_caches.size(folder), f"job {job_id} was deleted")


def _cut_off_imports(engine: Engine, artifacts: Path) -> Iterator[Item]:
    """Yield copies of imported SAEs that no row names: an import was killed before it was entered."""
    named = _entered(engine)
    folder = artifacts / IMPORTED
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in named and _age(path) > TEMPORARY_SECONDS and _is_inside(path, folder):
            yield Item("import", path, activation_caches.size(path), "an import that was cut off", TEMPORARY_SECONDS)


def _entered(engine: Engine) -> set[str]:
    """Return the names of the folders of imported SAEs, whatever folder they lie in now."""
    with reading(engine) as session:
        return {Path(uri).parent.name for uri in session.scalars(select(SaeRow.uri).where(SaeRow.job_id.is_(None)))}


def _unnamed_lenses(engine: Engine, artifacts: Path) -> Iterator[Item]:
    """Yield lenses that neither a row nor a job's config names: removed ones, and those whose job was killed there."""
    folder = artifacts / LENSES
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_old = not path.name.endswith(".partial") and _age(path) > TEMPORARY_SECONDS
        if is_old and _is_inside(path, folder) and not _is_named_lens(engine, path.name):
            yield Item("lens", path, activation_caches.size(path), "a lens that nothing names", TEMPORARY_SECONDS)


def _is_named_lens(engine: Engine, sha256: str) -> bool:
    with reading(engine) as session:
        row = session.scalar(select(LensRow.id).where(LensRow.sha256 == sha256).limit(1))
        return row is not None or bool(lenses.users(session, sha256))


def _checkpoints(engine: Engine, artifacts: Path, older_than: float) -> Iterator[Item]:
    kept = (Job.state.in_(TERMINAL), Job.hidden.is_distinct_from("deleted"))
    ended = select(Job.id, Job.state, db_now() - Job.finished_at).where(*kept).order_by(Job.id)
    with reading(engine) as session:
        jobs = session.execute(ended).all()
    for job_id, state, seconds in jobs:
        if state != "succeeded" and seconds < older_than:
            continue
        folders = (artifacts / str(job_id)).glob("*/*")
        for path in sorted(p for p in folders if p.name.isdecimal() and p.is_dir() and _is_inside(p, artifacts)):
            yield Item("checkpoint", path, activation_caches.size(path), f"job {job_id} has {state}")


def _caches(settings: Settings, older_than: float, *, all_caches: bool) -> Iterator[Item]:
    caches = activation_caches.list_caches(activation_caches.folder(settings.home))
    used = sum(cache.bytes for cache in caches)
    for cache in caches:
        seconds = time.time() - cache.used_at
        if all_caches:
            why = "no process uses it"
        elif seconds > older_than:
            why = f"unused for {seconds / 86_400:.1f} days"
        elif used > settings.cache_limit:
            why = f"over the quota of {settings.cache_bytes}"
        else:
            continue
        if not activation_caches.in_use(cache.path):
            used -= cache.bytes
            yield Item("cache", cache.path, cache.bytes, f"{cache.facts.get('model', 'activations')}: {why}")


def _tokens(engine: Engine, home: Path, older_than: float) -> Iterator[Item]:
    needed = _needed_tokens(engine)
    if needed is None:
        return
    for path in sorted((*home.glob("tokens/*.u16"), *home.glob("tokens/*.u32"))):
        if path.stem not in needed and _age(path) > older_than and not _is_being_packed(path):
            yield Item("tokens", path, activation_caches.size(path), "no job that is not over reads it", older_than)


def _shared(home: Path, older_than: float) -> Iterator[Item]:
    """Yield what evaluations computed once and no later one has read for long: the next that needs it computes it."""
    folder = home / SHARED
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        seconds = _age(path)
        if not path.name.startswith(".") and seconds > older_than and _is_inside(path, folder):
            why = f"no evaluation has used it for {seconds / 86_400:.1f} days"
            yield Item("evaluation", path, activation_caches.size(path), why, older_than)


def _needed_tokens(engine: Engine) -> set[str] | None:
    """Return the names of the token files of unfinished jobs; None where one has not reported yet which it reads."""
    open_jobs = select(Job.id).where(Job.state.not_in(TERMINAL))
    with reading(engine) as session:
        waiting = set(session.scalars(open_jobs))
        rows = session.execute(select(Attempt.job_id, Attempt.facts).where(Attempt.job_id.in_(open_jobs))).all()
    named = {job_id: str(facts["tokens"]["id"])[:16] for job_id, facts in rows if facts and facts.get("tokens")}
    return set(named.values()) if waiting <= set(named) else None


def _remove_item(engine: Engine, item: Item) -> bool:
    """Delete an item if what made it garbage still holds; say whether it was deleted."""
    if item.kind == "cache":
        return activation_caches.remove(item.path)
    if item.kind == "deleted":  # nothing brings its job back
        with transaction(engine) as session:
            session.execute(delete(CheckpointRow).where(CheckpointRow.job_id == int(item.path.name)))
        return _delete_files(item)
    if item.kind == "checkpoint":
        return _delete_pointer(engine, item) and _delete_files(item)
    with _packing_locked_out(item.path) as is_idle:
        if not is_idle or not item.path.exists() or _age(item.path) <= item.idle_seconds:
            return False
        if item.kind == "import" and item.path.name in _entered(engine):
            return False
        if item.kind == "lens" and _is_named_lens(engine, item.path.name):
            return False
        if item.kind == "tokens":
            needed = _needed_tokens(engine)
            if needed is None or item.path.stem in needed:
                return False
        return _delete_files(item)


def _delete_pointer(engine: Engine, item: Item) -> bool:
    """Delete the row of a checkpoint if its job is still over; say whether it is.

    The row goes first: a job that is retried meanwhile either keeps both, or finds neither and starts over.
    """
    job_id, attempt, tokens = (int(part) for part in item.path.parts[-3:])
    over = select(Job.id).where(Job.id == job_id, Job.state.in_(TERMINAL)).with_for_update()
    mine = (CheckpointRow.job_id == job_id, CheckpointRow.attempt == attempt, CheckpointRow.tokens_seen == tokens)
    with transaction(engine) as session:
        is_over = session.scalar(over) is not None
        if is_over:
            session.execute(delete(CheckpointRow).where(*mine))
    return is_over


def _delete_files(item: Item) -> bool:
    if item.path.is_dir():
        shutil.rmtree(item.path, ignore_errors=True)
        return not item.path.exists()
    with suppress(OSError):
        item.path.unlink()
    with suppress(OSError):  # the facts of a token file, or the state of one that was being packed
        item.path.with_suffix(".json" if item.kind == "tokens" else ".state").unlink()
    return not item.path.exists()


def _is_inside(path: Path, folder: Path) -> bool:
    """Say whether no link below a folder, which may be a link itself, leads from it to a path somewhere else."""
    return path.resolve() == folder.resolve() / path.relative_to(folder)


def _is_being_packed(path: Path) -> bool:
    with _packing_locked_out(path) as is_idle:
        return not is_idle


@contextmanager
def _packing_locked_out(path: Path) -> Iterator[bool]:
    """Take the lock of a token file's packing; give False where a process that packs it holds the lock."""
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
    for file in (path, *path.rglob("*")):
        with suppress(OSError):
            newest = max(newest, file.stat().st_mtime)
    return time.time() - newest
