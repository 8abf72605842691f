"""The activation cache: the same bits as a live stream, captured once, and whatever is wrong with the disk."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.errors import SubjectError
from orchestrator.storage import activation_caches
from tests.full_disk import files_of_at_most
from tests.unit.worker.activations.tiny_stream import BATCH, WINDOW, Parts, change, first, forwards, make_parts
from worker.activations.cache import Cache, key_of
from worker.activations.cached_forward import CacheStore
from worker.activations.heldout_split import Contexts
from worker.activations.stream import heldout, sample, shared_stream
from worker.protocol import Cached

ROOM = 10**9


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return change(make_parts(tmp_path_factory.mktemp("cached")), "data", activations="cache")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.activations.forward.CPU_TOKENS", 64)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "activations"


@pytest.fixture
def store(root: Path, said: list[str]) -> Iterator[CacheStore]:
    made = CacheStore(root, ROOM, warn=said.append)
    yield made
    made.close()


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.bin"))


def epoch(parts: Parts) -> int:
    """Return the batches of a little more than an epoch."""
    return Contexts.of(parts.tokens, parts.config).n_vectors // BATCH + 6


def test_it_gives_the_bits_of_a_live_stream(parts: Parts, store: CacheStore) -> None:
    live = first(parts, epoch(parts))
    with forwards(parts) as done:
        assert all(torch.equal(a, b) for a, b in zip(live, first(parts, epoch(parts), store=store), strict=True))
        assert done
        done.clear()
        assert all(torch.equal(a, b) for a, b in zip(live, first(parts, epoch(parts), store=store), strict=True))
        again = first(parts, 6, WINDOW + BATCH, store)
        assert all(torch.equal(a, b) for a, b in zip(live[WINDOW // BATCH + 1 :], again, strict=False))
        assert not done
    assert torch.equal(sample(*parts, WINDOW), sample(*parts, WINDOW, store=store))
    assert torch.equal(heldout(*parts), heldout(*parts, store=store))


def test_a_second_training_captures_nothing(parts: Parts, root: Path) -> None:
    """Another process of the same sweep, other seeds and sizes: every context was captured by the first."""
    trainings: list[int] = []
    for changed in ({}, {"seed": 3}):
        store = CacheStore(root, ROOM)
        config = change(parts, "data", **changed)
        with forwards(parts) as done:
            heldout(*config, store=store)
            sample(*config, WINDOW, store=store)
            first(config, epoch(parts), store=store)
        trainings.append(len(done))
        store.close()
    every = parts.tokens.n_contexts
    # Held-out and training part each end in a pass that is not full.
    assert -(-every // 4) <= trainings[0] <= every // 4 + 2 + epoch(parts) * BATCH // WINDOW
    assert trainings[1] == 0
    found = activation_caches.list_caches(root)[0]
    assert found.bytes >= every * 16 * 16 * 4
    assert sum(path.stat().st_size for path in shards(root)) == every * 16 * 16 * 4


def test_only_what_is_needed_is_captured(parts: Parts, root: Path, store: CacheStore) -> None:
    with forwards(parts) as done:
        first(parts, 1, store=store)
    assert len(shards(root)) == 1
    assert len(done) * 64 < 2 * WINDOW + 64
    state = Cache(root, parts.subject, parts.tokens).state
    assert (state.shards, state.complete, state.bytes) == (1, False, len(done) * 4 * 16 * 16 * 4)


def test_the_key_is_what_decides_the_values(parts: Parts, tmp_path: Path) -> None:
    key = key_of(parts.subject, parts.tokens)
    by_name = parts.subject.at(parts.config.subject.model_copy(update={"hook": "transformer.h.1"}))
    assert key_of(by_name, parts.tokens) == key
    low = parts.subject.at(parts.config.subject.model_copy(update={"layer": 0}))
    longer = parts.tokens.__class__(**vars(parts.tokens) | {"context_length": 8})
    # Another model under the same name: its weights decide.
    other = make_parts(tmp_path, seed=1).subject
    assert len({key, key_of(low, parts.tokens), key_of(parts.subject, longer), key_of(other, parts.tokens)}) == 4


def test_several_hook_points_are_kept_from_one_forward(parts: Parts, root: Path, store: CacheStore) -> None:
    low = change(parts, "subject", layer=0)
    low = low._replace(subject=parts.subject.at(low.config.subject))
    alone = [first(p, 8) for p in (parts, low)]
    pair = ([parts.subject, low.subject], parts.tokens, [parts.config, low.config])
    first(parts, 2, store=store)  # one of them is further than the other
    with forwards(parts) as done:
        together = list(islice(shared_stream(*pair, store=store), 8))
        n_first = len(done)
        list(islice(shared_stream(*pair, store=store), 8))
        assert len(done) == n_first
        first(low, 8, store=store)
        assert len(done) == n_first
    assert all(torch.equal(batches[i], alone[i][step]) for step, batches in enumerate(together) for i in (0, 1))
    assert len(list(root.iterdir())) == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "no manifest", "odd manifest"])
def test_a_damaged_shard_is_captured_again(parts: Parts, root: Path, harm: str) -> None:
    before = CacheStore(root, ROOM)
    live = first(parts, 12, store=before)
    before.close()
    victim = shards(root)[1]
    content = bytearray(victim.read_bytes())
    if harm == "flip":
        content[100] ^= 1
        victim.write_bytes(content)
    elif harm == "cut":
        victim.write_bytes(content[:-64])
    elif harm == "gone":
        victim.unlink()
    elif harm == "no manifest":
        victim.with_suffix(".json").unlink()
    else:
        victim.with_suffix(".json").write_text("{")
    (victim.parent / "1-aa.partial").write_bytes(b"half")
    after = CacheStore(root, ROOM)
    with forwards(parts) as done:
        again = first(parts, 12, store=after)
    after.close()
    assert all(torch.equal(a, b) for a, b in zip(live, again, strict=True))
    assert 0 < len(done) < len(live) * BATCH // 64
    with forwards(parts) as done:
        first(parts, 12, store=CacheStore(root, ROOM))
    assert not done


def test_a_shard_that_cannot_be_read_just_then_stays(parts: Parts, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = CacheStore(root, ROOM)
    live = first(parts, 12, store=before)
    before.close()
    there, digest, failures = shards(root), hashlib.file_digest, [errno.EMFILE, errno.EIO]

    def busy(*given: object) -> object:
        if failures:
            raise OSError(failures.pop(), "not just now")
        return digest(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", busy)
    after = CacheStore(root, ROOM)
    after.writes = False
    with forwards(parts) as done:
        again = first(parts, 12, store=after)
    after.close()
    assert all(torch.equal(a, b) for a, b in zip(live, again, strict=True))
    assert done
    assert not failures
    assert shards(root) == there
    with forwards(parts) as done:
        first(parts, 12, store=CacheStore(root, ROOM))
    assert not done


def test_bad_activations_are_named_from_the_cache_too(parts: Parts, root: Path) -> None:
    # Special tokens train: the first bad vector is the first of the text in the stream's order.
    every = change(parts, "data", special_tokens="train")
    store = CacheStore(root, ROOM)
    first(every, 1, store=store)
    store.close()
    manifest = json.loads(shards(root)[0].with_suffix(".json").read_text())
    values = np.fromfile(shards(root)[0], dtype=np.float32).reshape(-1, 16, 16)
    values[1, 5, 2] = np.nan
    shard = shards(root)[0]
    values.tofile(shard)
    manifest["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    shard.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(SubjectError, match=rf"token 5 of context {manifest['contexts'][1]} "):
        first(every, 1, store=CacheStore(root, ROOM))


def test_a_quota_too_small_is_said_once(parts: Parts, root: Path, said: list[str]) -> None:
    live = first(parts, 16)
    store = CacheStore(root, 20_000, warn=said.append)
    found = first(parts, 16, store=store)
    assert all(torch.equal(a, b) for a, b in zip(live, found, strict=True))
    assert len(said) == 1
    assert "cache_bytes" in said[0]
    assert 0 < activation_caches.size(root) <= 20_000
    store.close()


def test_the_cache_used_longest_ago_goes_first(parts: Parts, root: Path, said: list[str]) -> None:
    places = [parts.subject.at(parts.config.subject.model_copy(update={"layer": layer})) for layer in (0, 1, 2)]
    several = [change(parts, "subject", layer=layer)._replace(subject=place) for layer, place in enumerate(places)]
    keys = [key_of(place, parts.tokens) for place in places]
    for age, one in zip((10, 30), several[:2], strict=True):
        store = CacheStore(root, ROOM)
        first(one, 8, store=store)
        store.close()
        then = (root / keys[several.index(one)] / "lock").stat().st_mtime - age
        os.utime(root / keys[several.index(one)] / "lock", (then, then))
    one_key = activation_caches.list_caches(root)[0].bytes
    assert [kept.key for kept in activation_caches.list_caches(root)] == [keys[1], keys[0]]
    store = CacheStore(root, int(2.5 * one_key), warn=said.append)
    first(several[2], 8, store=store)
    assert sorted(kept.key for kept in activation_caches.list_caches(root)) == sorted([keys[0], keys[2]])
    assert not activation_caches.remove(root / keys[2]), "in use"
    store.close()
    assert activation_caches.remove(root / keys[2])
    assert not said


def test_a_folder_that_cannot_be_made_ends_nothing(parts: Parts, root: Path, said: list[str]) -> None:
    live = first(parts, 4)
    root.write_text("a file where the folder should be")
    store = CacheStore(root, ROOM, warn=said.append)
    assert all(torch.equal(a, b) for a, b in zip(live, first(parts, 4, store=store), strict=True))
    assert torch.equal(heldout(*parts), heldout(*parts, store=store))
    assert len(said) == 1
    assert "cannot be used" in said[0]


def test_a_full_disk_is_said_once_and_ends_nothing(
    parts: Parts, root: Path, store: CacheStore, said: list[str]
) -> None:
    live = first(parts, 8)
    with files_of_at_most(5000):
        found = first(parts, 8, store=store)
    assert all(torch.equal(a, b) for a, b in zip(live, found, strict=True))
    assert len(said) == 1
    assert "cannot be written" in said[0]
    assert not shards(root)
    assert not list(root.glob(f"*/*{activation_caches.PARTIAL}"))


def test_two_at_once_corrupt_nothing(parts: Parts, root: Path) -> None:
    live = first(parts, epoch(parts))
    one, two = CacheStore(root, ROOM), CacheStore(root, ROOM)
    # Both begin before either has anything, and go on in turns, one with another seed.
    streams = [
        iter(shared_stream([p.subject], p.tokens, [p.config], store=s))
        for p, s in ((parts, one), (parts, two), (change(parts, "data", seed=5), two))
    ]
    for step in range(epoch(parts)):
        batches = [next(stream)[0] for stream in streams]
        assert torch.equal(batches[0], live[step])
        assert torch.equal(batches[1], live[step])
    with forwards(parts) as done:
        again = first(parts, epoch(parts), store=CacheStore(root, ROOM))
    assert all(torch.equal(a, b) for a, b in zip(live, again, strict=True))
    assert not done


def test_the_database_is_told(parts: Parts, root: Path) -> None:
    heard: list[Cached] = []
    store = CacheStore(root, ROOM, on_change=heard.append)
    first(parts, epoch(parts), store=store)
    heldout(*parts, store=store)
    assert heard[0].bytes == 0
    assert heard[-1].complete
    assert not heard[-2].complete
    assert heard[-1].bytes == sum(path.stat().st_size for path in shards(root))
    assert heard[-1].shards == len(shards(root))
    assert Path(heard[-1].uri).name == heard[-1].key
    store.close()
