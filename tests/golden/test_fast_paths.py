"""Speed does not pay with quality: every fast path ends where the plain one does."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.native.kernels import use
from worker.sae.train_state import Step, TrainState, train_step
from worker.trainer.train import train

D_MODEL, BATCH, N_STEPS = 32, 256, 600


def _config(**parts: object) -> JobConfig:
    budget = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "max_tokens": N_STEPS * BATCH}
    sae = {"n_latents": 256, "k": 4, "normalize": "none", "activation": parts.pop("activation", "topk")}
    return parse({"sae": sae, "training": {**budget, "dead_after_tokens": 20 * BATCH, **parts}})


def _data() -> Tensor:
    """Return sums of a few of 128 directions, the frequent ones far more frequent than the rare."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(128, D_MODEL, generator=generator))
    rarity = 1 / torch.arange(1, 129)
    which = torch.multinomial(rarity, (N_STEPS + 16) * BATCH * 4, replacement=True, generator=generator).view(-1, 4)
    return (torch.rand(which.shape, generator=generator).unsqueeze(2) * directions[which]).sum(1)


def _by_autograd(state: TrainState, batch: Tensor, config: JobConfig) -> None:
    """Take a step as `take` does, but for the way to the gradients."""
    _, _, is_active = state.by_autograd(batch, config)
    state.optimizer.step()
    state.steps_since_point += 1
    state.tokens_seen += len(batch)
    state.aux_tokens += len(batch) * is_active


def _curve(config: JobConfig, x: Tensor, step: Step) -> dict[int, float]:
    """Train on all tokens; return fvu by the tokens seen."""
    state = TrainState.fresh(config, x[: 8 * BATCH])
    batches = torch.split(x[16 * BATCH :], BATCH)
    for _ in train(state, batches, config=config, heldout=x[8 * BATCH : 16 * BATCH], step=step):
        pass
    assert state.tokens_seen == N_STEPS * BATCH
    assert state.aux_tokens > 0, "AuxK takes part"
    return {point.tokens_seen: point.fvu for point in state.curve}


@pytest.mark.parametrize("activation", ["topk", "multi_topk"])
def test_after_equal_tokens_fvu_is_within_half_a_percent_of_the_plain_path(activation: str) -> None:
    """What rounds its products coarsely comes close at the end alone; the others never leave the plain path."""
    config, x = _config(activation=activation), _data()
    plain = _curve(config, x, _by_autograd)
    end = max(plain)
    assert plain[end] < 0.2
    coarse = _config(activation=activation, encode_dtype="float8_e4m3")
    assert _curve(coarse, x, train_step)[end] == pytest.approx(plain[end], rel=0.005)

    def stays(config: JobConfig) -> bool:
        return _curve(config, x, train_step) == pytest.approx(plain, rel=0.005)

    assert stays(config)
    assert stays(_config(activation=activation, encode_dtype="bfloat16"))
    if use(Path(os.environ["ORCH_TEST_KERNELS"])) is None:  # else there is no C compiler here
        try:
            assert stays(config)
        finally:
            use(None)
