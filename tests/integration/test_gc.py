"""`orch gc`: what may go, what stays, and that it asks."""

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, func, select, update

from orchestrator import queue, saes
from orchestrator.cli.main import run
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import CheckpointRow, Job
from orchestrator.saes import NewSae
from orchestrator.settings import Settings
from orchestrator.storage import activation_caches, cache_rows, garbage
from tests.queue_shorthand import claim, enqueue, result
from worker.evaluation.shared_store import SharedStore, key_of

DAY = 86_400.0
WEEK = 7 * DAY


def age(path: Path, seconds: float) -> None:
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - seconds,) * 2)


def put(path: Path, n_bytes: int = 100, *, old: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * n_bytes)
    age(path, old)
    return path


def checkpoint(settings: Settings, engine: Engine, lease: queue.Lease, tokens: int) -> Path:
    folder = settings.artifacts_folder / str(lease.job_id) / str(lease.attempt) / str(tokens)
    put(folder / "state.safetensors")
    queue.checkpointed(engine, lease, queue.CheckpointRef(uri=str(folder), tokens_seen=tokens, sha256="00"))
    return folder


def begun(engine: Engine, tokens_id: str = "a" * 64) -> queue.Lease:
    lease = claim(engine).lease
    queue.begin(engine, lease, {"tokens": {"id": tokens_id}}, 0)
    return lease


def cache(settings: Settings, key: str, n_bytes: int = 1000, *, old: float = 0.0) -> Path:
    path = activation_caches.folder(settings.home) / key
    os.close(activation_caches.lock_for_use(path))
    put(path / "aa.bin", n_bytes)
    age(path / "lock", old)
    return path


def found(engine: Engine, settings: Settings, **how: Any) -> set[Path]:
    return {item.path for item in garbage.find(engine, settings, **({"older_than": WEEK} | how))}


def pointers(engine: Engine) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(CheckpointRow)) or 0


def test_checkpoints_of_what_succeeded_go_and_the_final_stays(settings: Settings, engine: Engine) -> None:
    enqueue(engine, 2)
    ended, running = begun(engine), begun(engine)
    old, new = (checkpoint(settings, engine, ended, tokens) for tokens in (64, 128))
    kept = checkpoint(settings, engine, running, 64)
    final = put(settings.home / "artifacts" / str(ended.job_id) / "1" / "final" / "sae.safetensors")
    assert found(engine, settings) == set()
    queue.finish(engine, ended, result())
    items = garbage.find(engine, settings, older_than=WEEK)
    assert {item.path for item in items} == {old, new}
    assert sum(item.bytes for item in items) == 200
    assert garbage.remove(engine, items) == items
    assert not old.exists()
    assert final.exists()
    assert kept.exists()
    assert pointers(engine) == 1


def test_artifacts_that_lie_elsewhere(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    shared = replace(settings, artifacts=str(tmp_path / "shared"))
    enqueue(engine)
    lease = begun(engine)
    folder = checkpoint(shared, engine, lease, 64)
    partial = put(folder.parent / ".128.1.partial" / "state.safetensors").parent
    age(partial, 2 * 3600)
    queue.finish(engine, lease, result())
    assert found(engine, settings) == set()
    assert found(engine, shared) == {folder, partial}


def test_a_failed_job_can_be_retried_for_a_while(settings: Settings, engine: Engine) -> None:
    (job_id,) = enqueue(engine, max_failures=1)
    lease = begun(engine)
    folder = checkpoint(settings, engine, lease, 64)
    queue.fail(engine, lease, outcome="failed", error="broken", retry=False, exit_code=70)
    assert found(engine, settings) == set()
    with transaction(engine) as session:
        session.execute(update(Job).values(finished_at=db_now() - 8 * DAY))
    items = garbage.find(engine, settings, older_than=WEEK)
    assert [item.path for item in items] == [folder]
    # Retried between the look and the deed: everything stays.
    queue.retry(engine, [job_id])
    assert garbage.remove(engine, items) == []
    assert folder.exists()
    assert pointers(engine) == 1


def test_caches_go_by_age_by_quota_and_when_told(settings: Settings, engine: Engine) -> None:
    old, idle, fresh = (cache(settings, key, old=days * DAY) for key, days in (("k1", 9), ("k2", 2), ("k3", 0)))
    used = cache(settings, "k4", old=30 * DAY)
    descriptor = os.open(used / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert found(engine, settings) == {old}
    small = Settings(home=settings.home, database_url=settings.database_url, cache_bytes="2.5 kB")
    assert found(engine, small) == {old, idle}
    assert found(engine, settings, all_caches=True) == {old, idle, fresh}
    row = {"subject": "s", "hook": "h", "tokens_id": "t", "bytes": 1000, "shards": 1, "complete": False}
    for path in (old, used):
        cache_rows.record(engine, key=path.name, uri=str(path), **row)
    gone = garbage.remove(engine, garbage.find(engine, settings, older_than=WEEK, all_caches=True))
    os.close(descriptor)
    assert {item.path for item in gone} == {old, idle, fresh}
    assert [path.name for path in activation_caches.folder(settings.home).iterdir()] == ["k4"]
    assert [one.key for one in cache_rows.list_rows(engine)] == ["k4"]


@pytest.mark.parametrize(("place", "name"), [(Path, "is_dir"), (os, "open"), (os, "utime")])
def test_a_folder_removed_while_it_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    path, removals = tmp_path / "k1", [tmp_path / "aside"]
    real = getattr(place, name)

    def late(*given: object) -> object:
        if removals:
            path.rename(removals.pop())
        return real(*given)

    path.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(place, name, late)
        descriptor = activation_caches.lock_for_use(path)
    assert not removals
    assert activation_caches.in_use(path)
    os.close(descriptor)


def test_a_note_of_a_cache_is_kept_up(engine: Engine) -> None:
    row = {"key": "k", "uri": "u", "subject": "s", "hook": "h", "tokens_id": "t"}
    cache_rows.record(engine, **row, bytes=1, shards=1, complete=False)
    first = cache_rows.list_rows(engine)[0]
    cache_rows.record(engine, **row, bytes=2, shards=2, complete=True)
    (second,) = cache_rows.list_rows(engine)
    assert (second.bytes, second.shards, second.complete) == (2, 2, True)
    assert second.created_at == first.created_at
    assert second.last_used_at >= first.last_used_at


def test_token_files_of_open_jobs_stay(settings: Settings, engine: Engine) -> None:
    home = settings.home
    read, unread, young = (
        put(home / "tokens" / f"{name * 16}.u16", old=days * DAY) for name, days in (("a", 9), ("b", 9), ("c", 1))
    )
    unpacked = put(unread.with_suffix(".json"))
    enqueue(engine, 1)
    assert found(engine, settings) == set(), "a job that has not said what it reads"
    lease = begun(engine)
    assert found(engine, settings) == {unread}
    garbage.remove(engine, garbage.find(engine, settings, older_than=WEEK))
    assert read.exists()
    assert young.exists()
    assert not unread.exists()
    assert not unpacked.exists()
    queue.finish(engine, lease, result())
    assert found(engine, settings) == {read}


def test_a_token_file_that_has_come_into_use_since_stays(settings: Settings, engine: Engine) -> None:
    path = put(settings.home / "tokens" / f"{'a' * 16}.u16", old=9 * DAY)
    put(path.with_suffix(".lock"), 0)
    facts = put(path.with_suffix(".json"))
    items = garbage.find(engine, settings, older_than=WEEK)
    assert [item.path for item in items] == [path]
    with path.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert garbage.remove(engine, items) == [], "it is packed"
    enqueue(engine, 1)
    assert garbage.remove(engine, items) == [], "a job has come that may read it"
    lease = begun(engine)
    assert garbage.remove(engine, items) == [], "it reads it"
    queue.finish(engine, lease, result())
    age(path, DAY)
    assert garbage.remove(engine, items) == [], "it has been written anew"
    assert path.exists()
    assert facts.exists()
    age(path, 9 * DAY)
    assert garbage.remove(engine, items) == items
    assert not path.exists()


def test_packing_resumed_since_keeps_what_was_left(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = put(settings.home / "tokens" / "abc.partial", old=7200)
    state, lock = put(partial.with_suffix(".state")), put(partial.with_suffix(".lock"), 0)
    items = garbage.find(engine, settings, older_than=WEEK)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert garbage.remove(engine, items) == []
    age(partial, 0)
    assert garbage.remove(engine, items) == []
    assert partial.exists()
    assert state.exists()
    age(partial, 7200)
    deleted = garbage._delete_files

    def watched(item: garbage.Item) -> bool:
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return deleted(item)

    monkeypatch.setattr(garbage, "_delete_files", watched)
    assert garbage.remove(engine, items) == items
    assert not partial.exists()
    assert not state.exists()


def test_what_was_left_half_written_goes_after_an_hour(settings: Settings, engine: Engine) -> None:
    home = settings.home
    left = [
        put(home / "activations" / "k1" / "1-aa.partial", old=7200),
        put(home / "tokens" / "abc.partial", old=7200),
        put(home / "artifacts" / "1" / "1" / ".64.9.partial" / "state.safetensors", old=7200).parent,
    ]
    age(left[2], 7200)
    put(home / "activations" / "k1" / "2-bb.partial", old=60)
    packing = put(home / "tokens" / "def.partial", old=7200)
    with packing.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(engine, settings) == set(left)
    assert found(engine, settings) == {*left, packing}


def test_a_copy_of_an_import_that_was_cut_off_goes_after_an_hour_and_an_entered_one_never(
    settings: Settings, engine: Engine
) -> None:
    folder = settings.artifacts_folder / "saes"
    entered, cut_off, young = (folder / name / "sae" for name in ("entered-1", "cut-2", "young-3"))
    for path, old in ((entered, 7200.0), (cut_off, 7200.0), (young, 60.0)):
        put(path / "sae.safetensors", old=old)
        age(path.parent, old)
    facts = SaeFacts(
        selection="relu", d_model=4, n_latents=8, normalize="none", subtracts_bias=True, dtype="float32"
    )  # fmt: skip
    new = {"name": "a", "format": "saelens", "source": "b", "sha256": "00", "state": "unverified", "note": ""}
    items = garbage.find(engine, settings, older_than=WEEK)
    assert {item.path for item in items} == {entered.parent, cut_off.parent}
    saes.add(engine, NewSae(**new, uri="/elsewhere/saes/entered-1/sae", facts=facts, measured=None))  # type: ignore[arg-type]
    assert found(engine, settings) == {cut_off.parent}
    assert [item.path for item in garbage.remove(engine, items)] == [cut_off.parent], "the other was entered since"
    assert [path.exists() for path in (entered, young, cut_off.parent)] == [True, True, False]


def test_what_evaluations_share_goes_when_none_has_used_it_for_long(settings: Settings, engine: Engine) -> None:
    store = SharedStore(settings.home / garbage.SHARED)
    for number in range(3):
        store.get({"what": number}, lambda: {"values": torch.ones(4)})
    old, used, young = (settings.home / garbage.SHARED / key_of({"what": number}) for number in range(3))
    left = put(settings.home / garbage.SHARED / ".half.1.partial" / "tensors.safetensors", old=7200).parent
    for path, seconds in ((old, 9 * DAY), (used, 9 * DAY), (young, DAY), (left, 7200.0)):
        age(path, seconds)
    store.get({"what": 1}, lambda: {"values": torch.zeros(4)})
    items = garbage.find(engine, settings, older_than=WEEK)
    assert {item.path: item.kind for item in items} == {old: "evaluation", left: "temporary"}
    assert garbage.remove(engine, items) == items
    assert store.get({"what": 1}, dict)["values"].tolist() == [1.0] * 4


@pytest.fixture
def full(sqlite_settings: Settings) -> Settings:
    put(sqlite_settings.home / "tokens" / "abc.partial", 10, old=7200)
    cache(sqlite_settings, "k1", 2_000_000, old=9 * DAY)
    return sqlite_settings


def test_the_command_asks_and_says(
    full: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(full.home))
    assert run(["gc", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "activations: unused for 9.0 days" in said
    assert "2 things, 2.00 MB would go." in said
    assert run(["gc"]) == 2
    asked = capsys.readouterr().err
    assert "Delete 2 things, 2.00 MB? There is nobody to ask" in asked
    assert (full.home / "activations" / "k1").exists()
    assert run(["gc", "--older-than", "10d", "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [item["kind"] for item in items] == ["temporary"], "and nobody was asked"
    assert run(["gc", "--yes", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == [str(full.home / "activations" / "k1")]
    assert run(["gc", "--older-than", "soon"]) == 2
    assert "no time span" in capsys.readouterr().err
    assert run(["gc", "--yes"]) == 0
    assert "0 things, 0 B gone." in capsys.readouterr().out
