"""An activation function is one entry: its facts for planning and its formula for training."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.activation_functions import ACTIVATIONS, Activation, ActivationFacts, reconstruction_sizes
from orchestrator.config.job import JobConfig
from orchestrator.estimates.flops import dense_flops, step_flops
from worker.sae.activation_functions import FUNCTIONS, ActivationFunction, Tensors
from worker.sae.train_state import TrainState, train_step


def test_every_name_has_facts_and_a_formula() -> None:
    assert set(get_args(Activation)) == set(ACTIVATIONS) == set(FUNCTIONS)


def test_reconstructions_never_ask_for_more_latents_than_there_are() -> None:
    assert reconstruction_sizes("topk", k=8, n_latents=64) == ((8, 1.0),)
    assert reconstruction_sizes("multi_topk", k=8, n_latents=64) == ((8, 1.0), (32, 1 / 8))
    assert reconstruction_sizes("multi_topk", k=8, n_latents=20) == ((8, 1.0), (20, 1 / 8))


class _Shifted(ActivationFunction):
    """z = max(a − shift, 0) with a trained shift per latent."""

    def new_tensors(self, n_latents: int) -> dict[str, Tensor]:
        return {"shift": nn.Parameter(torch.zeros(n_latents))}

    def activate(self, pre_acts: Tensor, own: Tensors, *, k: int, training: bool) -> Tensor:
        return (pre_acts - own["shift"]).relu()


def test_a_new_function_is_trained_once_it_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "shifted", ActivationFacts(selects_per_token=False))  # type: ignore[misc]
    monkeypatch.setitem(FUNCTIONS, "shifted", _Shifted())  # type: ignore[misc]
    plain = JobConfig.model_validate({"sae": {"n_latents": 32, "k": 4}, "training": {"batch_tokens": 64}})
    config = plain.model_copy(update={"sae": plain.sae.model_copy(update={"activation": "shifted"})})
    assert step_flops(config.sae, 8) == dense_flops(32, 8)
    sample = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    state = TrainState.fresh(config, sample)
    for batch in torch.split(sample, 64):
        train_step(state, batch, config)
    shift = state.model.own["shift"]
    assert shift.count_nonzero()
    assert "model.shift" in state.tensors()
    again = TrainState.restored(config, state.tensors(), state.values(), device="cpu")
    assert torch.equal(again.model.own["shift"], shift)
