"""Capture on a GPU: what runs ahead on a stream of its own gives the numbers of what does not."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.unit.worker.activations.tiny_stream import BATCH, WINDOW, Parts, change, make_parts
from worker.activations.cached_forward import CacheStore
from worker.activations.forward import ForwardBatches, tokens_per_pass
from worker.activations.heldout_split import Contexts
from worker.activations.shuffle import PrefetchBuffer, ShuffleBuffer, SyncBuffer, make_buffer
from worker.activations.stream import heldout, stream
from worker.subject.model import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    made = change(make_parts(tmp_path_factory.mktemp("gpu")), "subject", dtype=request.param)
    return made._replace(subject=load(made.config.subject, "cuda"))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.activations.forward._CUDA_TOKENS", (64, 64))


def shuffle(parts: Parts) -> ShuffleBuffer:
    contexts = Contexts.of(parts.tokens, parts.config)
    return ShuffleBuffer(ForwardBatches([parts.subject], parts.tokens), contexts, n_vectors=WINDOW)


def test_running_ahead_changes_no_number(parts: Parts) -> None:
    ahead, plain = make_buffer(shuffle(parts), seed=1), SyncBuffer(shuffle(parts), 1)
    assert isinstance(ahead, PrefetchBuffer)
    heavy = torch.randn(2048, 2048, device="cuda")
    for window in range(2, 12):
        found = ahead.take(window)[0]
        for _ in range(WINDOW // BATCH):  # training keeps the device busy meanwhile
            ahead.prefetch(n_calls=WINDOW // BATCH)
            heavy = heavy @ heavy / heavy.norm()
        expected = plain.take(window)[0]
        assert torch.equal(found, expected)


def test_a_stream_goes_on_anywhere(parts: Parts) -> None:
    through = list(islice(stream(parts.subject, parts.tokens, parts.config), 20))
    start = 9
    again = islice(stream(parts.subject, parts.tokens, parts.config, start_tokens=start * BATCH), 11)
    assert all(torch.equal(a, b) for a, b in zip(through[start:], again, strict=True))
    assert through[0].device.type == "cuda"


def test_the_cache_gives_the_same_twice(parts: Parts, tmp_path: Path) -> None:
    kept = change(parts, "data", activations="cache")
    runs = []
    for _ in range(2):
        store = CacheStore(tmp_path / "activations", 10**9)
        batches = list(islice(stream(kept.subject, kept.tokens, kept.config, store=store), 20))
        runs.append([*batches, heldout(kept.subject, kept.tokens, kept.config, store=store)])
        store.close()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_pass_fits_the_memory(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    n_tokens = tokens_per_pass(parts.subject, 16)
    assert n_tokens & (n_tokens - 1) == 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ForwardBatches([parts.subject], replace(parts.tokens))(
        torch.arange(n_tokens // 16).numpy() % parts.tokens.n_contexts
    )
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < torch.cuda.get_device_properties(0).total_memory / 16
