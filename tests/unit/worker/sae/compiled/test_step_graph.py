"""The step in fixed shapes, as it is before a compiler sees it, against the step as it is taken on a CPU."""

import copy

import pytest
import torch

from orchestrator.config.validation import parse
from worker.sae.compiled.compiled_step import CompiledStep
from worker.sae.compiled.step_graph import whole_step
from worker.sae.train_state import TrainState, train_step

D_MODEL, BATCH, N_STEPS = 15, 32, 24


@pytest.mark.parametrize("k_aux", [3, 64])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("encode_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["topk", "multi_topk"])
def test_fixed_shapes_change_nothing(activation: str, encode_dtype: str, clip_norm: float | None, k_aux: int) -> None:
    """k_aux below the number of dead latents, and above it."""
    training = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "dead_after_tokens": 5 * BATCH, "max_tokens": 2**20}
    config = parse(
        {
            "sae": {"n_latents": 97, "k": 4, "k_aux": k_aux, "activation": activation},
            "optimizer": {"lr": 1e-3, "clip_norm": clip_norm},
            "training": {**training, "encode_dtype": encode_dtype},
        }
    )
    x = torch.randn(N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0))
    plain = TrainState.fresh(config, x)
    with torch.no_grad():
        plain.model.b_enc[:30] -= 10.0  # they do not fire
    other = copy.deepcopy(plain)
    step = CompiledStep(config, other, say=print)
    step._compiled = whole_step
    for batch in torch.split(x, BATCH):
        step(other, batch, config)
        train_step(plain, batch, config)
    assert plain.sums[1] > 0, "AuxK takes part"
    assert other.tokens_seen == plain.tokens_seen
    for (name, one), value in zip(other.tensors().items(), plain.tensors().values(), strict=True):
        torch.testing.assert_close(one, value, rtol=1e-3, atol=2e-5, msg=f"{name} differs")
