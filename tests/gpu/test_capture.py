"""Capture on a GPU: what runs ahead on a stream of its own gives the numbers of what does not."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.unit.tiny_stream import BATCH, WINDOW, Parts, change, make_parts
from worker.activations import heldout, stream
from worker.contexts import Contexts
from worker.passes import Passes, tokens_per_pass
from worker.store import Store
from worker.subject import load
from worker.windows import Ahead, Filled, Windows, ready

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    made = change(make_parts(tmp_path_factory.mktemp("gpu")), "subject", dtype=request.param)
    return made._replace(subject=load(made.config.subject, "cuda"))


@pytest.fixture(autouse=True)
def _small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.passes._CUDA_TOKENS", (64, 64))


def windows(parts: Parts) -> Windows:
    contexts = Contexts.of(parts.tokens, parts.config)
    return Windows(Passes([parts.subject], parts.tokens), contexts, n_vectors=WINDOW)


def test_running_ahead_changes_no_number(parts: Parts) -> None:
    ahead, plain = ready(windows(parts), seed=1), Filled(windows(parts), 1)
    assert isinstance(ahead, Ahead)
    heavy = torch.randn(2048, 2048, device="cuda")
    for window in range(2, 12):
        found = ahead.take(window)[0]
        for _ in range(WINDOW // BATCH):  # training keeps the device busy meanwhile
            ahead.go_on(batches=WINDOW // BATCH)
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
        store = Store(tmp_path / "activations", 10**9)
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
    Passes([parts.subject], replace(parts.tokens))(torch.arange(n_tokens // 16).numpy() % parts.tokens.n_contexts)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < torch.cuda.get_device_properties(0).total_memory / 16
