"""Interrupted and resumed equals uninterrupted, bit for bit."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from worker.sae.train_state import TrainState
from worker.trainer import checkpoint
from worker.trainer.train import evaluation_tokens, train

BATCH, N_STEPS, D_MODEL = 64, 120, 16


def _config(n_layers: int = 1, **sae: Any) -> JobConfig:
    return parse(
        {
            "subject": {"layers": list(range(n_layers))},
            "sae": {"n_latents": 256, "k": 4, **sae},
            "optimizer": {"clip_norm": 0.5, "warmup_tokens": 20 * BATCH, "decay_tokens": 30 * BATCH},
            "training": {
                "batch_tokens": BATCH, "shuffle_tokens": BATCH, "max_tokens": N_STEPS * BATCH,
                "first_point_tokens": 8 * BATCH, "dead_after_tokens": 10 * BATCH,
            },
        }
    )  # fmt: skip


def _batches(n_layers: int = 1, batch: int = BATCH) -> list[torch.Tensor]:
    """Return batches of one layer after another, each with vectors of its own length."""
    x = torch.randn(n_layers * N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0)) ** 3
    layers = (x / x.norm(dim=1, keepdim=True)).chunk(n_layers)
    parts = [torch.split((1 + i) * layer, batch) for i, layer in enumerate(layers)]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def _run(state: TrainState, config: JobConfig, *, n_steps: int | None = None) -> TrainState:
    rest = _batches(state.n_layers)[state.tokens_seen // BATCH :]
    heldout = _batches(state.n_layers, 4 * BATCH)[0]
    for _ in islice(train(state, rest, config=config, heldout=heldout), n_steps):
        pass
    return state


def _but_for_the_clock(curve: list[Point]) -> list[Point]:
    return [point._replace(wall_seconds=0.0) for point in curve]


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("activation", ["topk", "multi_topk", "batchtopk", "jumprelu"])
def test_resumed_equals_uninterrupted(tmp_path: Path, activation: str, n_layers: int) -> None:
    config = _config(n_layers, activation=activation)
    sample = _batches(n_layers, 8 * BATCH)[0]
    whole = _run(TrainState.fresh(config, sample, n_layers=n_layers), config)
    assert whole.aux_tokens > 0, "AuxK must take part"
    grid = evaluation_tokens(config)
    stops = [1, 8, 9, 37, 64, 119]  # before the first point, at one, between two, right before the end
    assert {8 * BATCH in grid, 9 * BATCH in grid, 37 * BATCH in grid} == {True, False}
    state = TrainState.fresh(config, sample, n_layers=n_layers)
    for before, stop in zip([0, *stops], stops, strict=False):
        _run(state, config, n_steps=stop - before)
        assert state.tokens_seen == stop * BATCH
        state = checkpoint.load(checkpoint.save(tmp_path, state, config, facts={}).uri, config)
    _run(state, config)
    assert _but_for_the_clock(state.curve) == _but_for_the_clock(whole.curve)
    assert len(whole.curve) == len(grid)
    assert state.untrained_fvu == whole.untrained_fvu
    found, wanted = state.tensors(), whole.tensors()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    for name, value in whole.optimizer.averaged().items():
        assert torch.equal(state.optimizer.averaged()[name], value), name


def test_a_seed_repeats_itself() -> None:
    config, sample = _config(), torch.cat(_batches()[:8])
    first, second = (_run(TrainState.fresh(config, sample), config, n_steps=20) for _ in range(2))
    assert _but_for_the_clock(first.curve) == _but_for_the_clock(second.curve)
