"""The language model that ships is a real one, and autoencoders of it behave as the papers say."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from worker.activations import stream
from worker.data import token_file
from worker.data.standard_library import is_held_out, standard_library_files
from worker.sae.train_state import TrainState
from worker.subject import model
from worker.trainer.train import train

BIGRAM_LOSS = 4.62
"""Nats per token of a Witten-Bell bigram on the held-out documents: examples/subject/README.md."""
TRAINING = {
    "batch_tokens": 256, "shuffle_tokens": 16_384, "heldout_tokens": 4096, "max_tokens": 98_304,
    "dead_after_tokens": 65_536,
}  # fmt: skip
Curves = dict[tuple[int, int], tuple[float, list[Point]]]


def _config(n_latents: int, k: int) -> JobConfig:
    return parse(
        {
            "subject": {"layer": 3},
            "data": {"max_tokens": 150_000},
            "sae": {"n_latents": n_latents, "k": k},
            "optimizer": {"ema": 0.99, "lr": 0.02 * (128 / n_latents) ** 0.5},
            "training": TRAINING,
        }
    )


@pytest.fixture(scope="module")
def shipped() -> model.Subject:
    torch.set_num_threads(1)
    return model.load(_config(64, 4).subject)


@pytest.fixture(scope="module")
def curves(shipped: model.Subject, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """Train four autoencoders on one stream of activations."""
    config = _config(64, 4)
    packed = token_file.pack(config.data, shipped.tokenizer, tmp_path_factory.mktemp("tokens"))
    n_batches = TRAINING["max_tokens"] // TRAINING["batch_tokens"]
    batches = list(islice(stream.stream(shipped, packed, config), n_batches))
    sample = stream.sample(shipped, packed, config, 8192)
    heldout = stream.heldout(shipped, packed, config)
    found: Curves = {}
    for n_latents, k in ((64, 4), (64, 8), (256, 4), (256, 8)):
        state = TrainState.fresh(_config(n_latents, k), sample)
        for _ in train(state, batches, config=_config(n_latents, k), heldout=heldout):
            pass
        assert state.untrained_fvu is not None
        found[n_latents, k] = state.untrained_fvu, state.curve
    return found


def test_it_predicts_source_it_never_saw_far_better_than_a_bigram(shipped: model.Subject) -> None:
    texts = [text for path, text in standard_library_files() if is_held_out(path)]
    with torch.inference_mode():
        losses = [_loss(shipped, ids) for ids in islice(_windows(shipped, texts), 40)]
    assert len(losses) == 40
    assert sum(losses) / len(losses) < BIGRAM_LOSS - 1


def _windows(shipped: model.Subject, texts: list[str]) -> Iterator[Tensor]:
    """Yield the first window of 128 tokens of each document that is long enough, then the next of each."""
    ids = [shipped.tokenizer(text[:20_000], return_tensors="pt").input_ids[0] for text in texts]
    for start in range(0, 4096, 128):
        yield from (i[start : start + 128].unsqueeze(0) for i in ids if len(i) >= start + 128)


def _loss(shipped: model.Subject, ids: Tensor) -> float:
    logits = model.run_patched([shipped], ids, [lambda found: found])
    return float(functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]))


def test_every_autoencoder_beats_its_untrained_start_by_far(curves: Curves) -> None:
    for untrained, curve in curves.values():
        assert curve[-1].fvu < 0.6 * untrained
        assert curve[-1].fvu < curve[0].fvu


def test_fvu_falls_with_latents_at_fixed_k_and_with_k_at_fixed_latents(curves: Curves) -> None:
    last = {size: curve[-1].fvu for size, (_, curve) in curves.items()}
    for k in (4, 8):
        assert last[256, k] < 0.97 * last[64, k]
    for n_latents in (64, 256):
        assert last[n_latents, 8] < 0.97 * last[n_latents, 4]


def test_no_token_has_more_than_k_latents(curves: Curves) -> None:
    for (_, k), (_, curve) in curves.items():
        assert all(0 < point.l0 <= k for point in curve)


def test_the_examples_of_sweeps_expand() -> None:
    from orchestrator.sweep import check_paths, expand

    examples = Path(__file__).parents[2] / "examples"
    for file in examples.glob("*.yaml"):
        sweep = expand(file)
        assert sweep.configs
        check_paths(sweep.configs)
