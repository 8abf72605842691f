"""Where there is nothing to find, training gains little: the control of Gao et al. 2024, appendix G, in small."""

from itertools import islice

import pytest
import torch
from torch.nn import functional

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.activations.synthetic_source import SyntheticActivations
from worker.sae.train_state import TrainState
from worker.trainer.train import train

D_MODEL, K, SIZES, BATCH, BUDGET = 64, 4, (128, 512), 512, 262_144
UNTRAINED = {128: 0.750, 512: 0.667}
"""fvu of random directions, by another Monte Carlo."""


def _config(n_latents: int) -> JobConfig:
    return parse(
        {
            "subject": {"model": f"synthetic:gaussian?d_model={D_MODEL}"},
            "sae": {"n_latents": n_latents, "k": K, "normalize": "none"},
            "optimizer": {"ema": 0.99},
            "training": {
                "batch_tokens": BATCH, "shuffle_tokens": BATCH, "heldout_tokens": 16_384, "max_tokens": BUDGET,
                "dead_after_tokens": 65_536,
            },
        }
    )  # fmt: skip


def _random_directions(n_latents: int, heldout: torch.Tensor) -> float:
    """Return the fvu of an untrained dictionary with one scale for all it gives, the best one."""
    directions = functional.normalize(
        torch.randn(n_latents, D_MODEL, generator=torch.Generator().manual_seed(1)), dim=1
    )
    top = (heldout @ directions.T).topk(K, dim=1)
    found = (top.values[..., None] * directions[top.indices]).sum(1)
    return 1 - float((found * heldout).sum() ** 2 / (found.square().sum() * heldout.square().sum()))


def test_trained_on_gaussian_noise_the_loss_falls_little_and_slowly_with_size() -> None:
    trained: dict[int, float] = {}
    for n in SIZES:
        config, source = _config(n), SyntheticActivations(_config(n).subject.model)
        (heldout,) = source.heldout(config)
        assert _random_directions(n, heldout) == pytest.approx(UNTRAINED[n], abs=0.004)
        state = TrainState.fresh(config, source.sample(config, 16_384)[0])
        batches = (batch for ((batch,),) in source.stream([config], start_tokens=0))
        for _ in train(state, islice(batches, BUDGET // BATCH), config=config, heldout=heldout):
            pass
        trained[n] = state.curve[-1].fvu
        assert state.curve[-1].dead_share == 0
        assert 0.8 * UNTRAINED[n] < trained[n] < UNTRAINED[n] - 0.02
    slope = torch.tensor([trained[n] for n in SIZES]).log().diff() / torch.tensor(SIZES).log().diff()
    assert -0.080 < float(slope) < -0.045
