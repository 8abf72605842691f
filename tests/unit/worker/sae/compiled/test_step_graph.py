"""The step in fixed shapes, as it is before a compiler sees it, against the step as it is taken on a CPU."""

import copy
from typing import Any

import pytest
import torch

from orchestrator.config.validation import parse
from worker.sae.compiled.compiled_step import CompiledStep
from worker.sae.compiled.step_graph import StepTensors, whole_step
from worker.sae.train_state import TrainState, train_step

D_MODEL, BATCH, N_STEPS = 15, 32, 24


@pytest.mark.parametrize("k_aux", [3, 64])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("encode_dtype", ["float32", "bfloat16", "float8_e4m3"])
@pytest.mark.parametrize("activation", ["topk", "multi_topk"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_fixed_shapes_change_nothing(
    n_layers: int, activation: str, encode_dtype: str, clip_norm: float | None, k_aux: int
) -> None:
    """k_aux below the number of dead latents, and above it."""
    training = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "dead_after_tokens": 5 * BATCH, "max_tokens": 2**20}
    config = parse(
        {
            "sae": {"n_latents": 97, "k": 4, "k_aux": k_aux, "activation": activation},
            "optimizer": {"lr": 1e-3, "clip_norm": clip_norm},
            "training": {**training, "encode_dtype": encode_dtype},
        }
    )
    x = torch.randn(n_layers, N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0))
    x *= torch.arange(1, n_layers + 1).view(-1, 1, 1)  # each layer has a variance of its own
    plain = TrainState.fresh(config, x.flatten(0, 1), n_layers=n_layers)
    with torch.no_grad():
        plain.model.b_enc[:30] -= 10.0 * n_layers  # they do not fire
    other = copy.deepcopy(plain)
    step = CompiledStep(config, other, say=print)
    step._compiled = whole_step
    for batch in (part.flatten(0, 1) for part in torch.split(x, BATCH, dim=1)):
        step(other, batch, config)
        train_step(plain, batch, config)
    assert plain.sums[1] > 0, "AuxK takes part"
    assert other.tokens_seen == plain.tokens_seen
    for (name, one), value in zip(other.tensors().items(), plain.tensors().values(), strict=True):
        torch.testing.assert_close(one, value, rtol=1e-3, atol=2e-5, msg=f"{name} differs")


class Replayed:
    """A CUDA graph's part, played on the CPU: it takes the step over the tensors it was made for."""

    made = 0

    def __init__(self, step: Any, tensors: StepTensors, batch: torch.Tensor, numbers: torch.Tensor) -> None:
        Replayed.made += 1
        self._step, self._tensors = step, tensors

    def is_of(self, tensors: StepTensors) -> bool:
        return self._tensors.tokens_since_fired is tensors.tokens_since_fired

    def __call__(self, batch: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = self._step(batch, numbers)
        return done


class Refused:
    """A device that allows no capture."""

    def __init__(self, *parts: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(("replay", "said"), [(Replayed, 0), (Refused, 1)])
def test_every_step_is_taken_once_whether_it_can_be_replayed_or_not(
    monkeypatch: pytest.MonkeyPatch, replay: type, said: int
) -> None:
    monkeypatch.setattr("worker.sae.compiled.compiled_step.Replay", replay)
    training = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "dead_after_tokens": 5 * BATCH, "max_tokens": 2**20}
    config = parse({"sae": {"n_latents": 97, "k": 4, "k_aux": 8}, "training": training, "optimizer": {"lr": 1e-3}})
    x = torch.randn(N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0))
    plain = TrainState.fresh(config, x)
    other, told = copy.deepcopy(plain), list[str]()
    step, plain_step = CompiledStep(config, other, say=told.append), CompiledStep(config, plain, say=told.append)
    step._compiled = plain_step._compiled = whole_step
    step._replays, Replayed.made = {}, 0
    for number, batch in enumerate(torch.split(x, BATCH)):
        if number == 3:  # copied or restored, a state has other tensors than those that were captured
            other = copy.deepcopy(other)
        step(other, batch, config)
        plain_step(plain, batch, config)
    assert len(told) == said, told
    assert Replayed.made == (0 if said else 3), "one for each graph, and one more for the other tensors"
    assert other.values() == plain.values()
    for (name, one), value in zip(other.tensors().items(), plain.tensors().values(), strict=True):
        assert torch.equal(one, value), name
