"""The model's formulas, by hand and against a dense writing of them."""

from typing import Any

import pytest
import torch

from orchestrator.config.job import SaeConfig
from worker.sae.activation_functions import BANDWIDTH, is_above, jump_relu
from worker.sae.model import SparseAutoencoder


def _model(d_model: int = 6, **sae: Any) -> SparseAutoencoder:
    model = SparseAutoencoder(SaeConfig(**{"n_latents": 20, "k": 3, **sae}), d_model).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (model.W_enc, model.b_enc, model.W_dec, model.b_pre):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def _x(n_tokens: int = 15, d_model: int = 6) -> torch.Tensor:
    return torch.randn(n_tokens, d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_topk_is_the_dense_formula() -> None:
    model, x = _model(), _x()
    pre_acts = (x - model.b_pre) @ model.W_enc.T + model.b_enc
    values, indices = pre_acts.topk(3)
    z = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    encoded = model.encode(x)
    torch.testing.assert_close(encoded.pre_acts, pre_acts)
    assert encoded.top_indices is not None
    assert torch.equal(encoded.top_indices, indices)
    torch.testing.assert_close(encoded.top_acts, values.relu())
    torch.testing.assert_close(model(x), z @ model.W_dec + model.b_pre)


def test_gradients_are_those_of_the_dense_formula() -> None:
    model, x = _model(), _x()
    (model(x) - x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    pre_acts = (x - model.b_pre) @ model.W_enc.T + model.b_enc
    values, indices = pre_acts.topk(3)
    z = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    (z @ model.W_dec + model.b_pre - x).square().sum().backward()  # type: ignore[no-untyped-call]
    assert set(found) == {"W_enc", "b_enc", "W_dec", "b_pre"}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_selection_is_signed_and_negative_ones_do_not_fire() -> None:
    model = _model(d_model=1, n_latents=3, k=2)
    with torch.no_grad():
        model.W_enc.copy_(torch.tensor([[1.0], [-5.0], [-0.5]]))
        model.b_enc.zero_()
        model.b_pre.zero_()
    encoded = model.encode(torch.ones(1, 1, dtype=torch.float64))
    assert encoded.top_indices is not None
    assert encoded.top_indices.tolist() == [[0, 2]]  # −0.5 is chosen, not |−5|
    assert encoded.top_acts.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("activation", ["topk", "multi_topk"])
def test_l0_is_at_most_k_and_k_can_be_overridden(activation: str) -> None:
    model, x = _model(activation=activation), _x()
    assert int((model.encode(x).top_acts > 0).sum(1).max()) <= 3
    assert model.encode(x, k=5).top_acts.shape == (15, 5)
    assert model.k_widest == (12 if activation == "multi_topk" else 3)


def test_k_widest_is_never_above_n_latents() -> None:
    assert _model(activation="multi_topk", n_latents=5).k_widest == 5


def test_relu_keeps_every_positive_one() -> None:
    model, x = _model(activation="relu"), _x()
    pre_acts = (x - model.b_pre) @ model.W_enc.T + model.b_enc
    torch.testing.assert_close(model(x), pre_acts.relu() @ model.W_dec + model.b_pre)


def test_batchtopk_evaluates_with_the_threshold_of_a_batch() -> None:
    model, x = _model(activation="batchtopk"), _x(400)
    encoded = model.encode(x)
    assert int((encoded.top_acts > 0).sum()) == 3 * 400
    smallest = encoded.top_acts[encoded.top_acts > 0].min()
    model.function.calibrate(encoded.pre_acts, model.own, k=model.k)
    assert model.threshold == smallest
    alone = model.eval().encode(x[:1])  # one token alone gives what it gives among others
    torch.testing.assert_close(alone.top_acts, model.encode(x).top_acts[:1])
    torch.testing.assert_close(model.encode(x).top_acts, encoded.top_acts)
    nothing_fires = model.encode(x[:1] * 0 - 1e9)
    model.function.calibrate(nothing_fires.pre_acts.clamp(max=-1.0), model.own, k=model.k)
    assert model.threshold == 0, "no latent that is not above 0 is active"


def test_jumprelu_has_the_rectangle_kernel_gradients() -> None:
    threshold = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    pre_acts = torch.tensor([[0.5 + BANDWIDTH / 4, 0.2, 0.9]], requires_grad=True)
    jump_relu(pre_acts, threshold).sum().backward()  # type: ignore[no-untyped-call]
    assert pre_acts.grad is not None
    assert threshold.grad is not None
    assert pre_acts.grad.tolist() == [[1.0, 0.0, 1.0]]
    torch.testing.assert_close(threshold.grad, torch.tensor([-0.5 / BANDWIDTH, 0.0, 0.0]))
    threshold.grad = None
    above = is_above(pre_acts.detach(), threshold)
    assert above.tolist() == [[1.0, 0.0, 1.0]]
    above.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(threshold.grad, torch.tensor([-1 / BANDWIDTH, 0.0, 0.0]))


def test_bfloat16_products_stay_near_and_parameters_stay_float32() -> None:
    full = _model(d_model=64, n_latents=128).float()
    half = SparseAutoencoder(SaeConfig(n_latents=128, k=3), 64, dtype="bfloat16")
    half.load_state_dict(full.state_dict())
    x = _x(32, 64).float()
    encoded = half.encode(x)
    assert encoded.pre_acts.dtype == half.W_enc.dtype == half(x).dtype == torch.float32
    torch.testing.assert_close(encoded.pre_acts, full.encode(x).pre_acts, rtol=0.05, atol=0.3)
    encoded.top_acts.sum().backward()  # type: ignore[no-untyped-call]
    assert half.W_enc.grad is not None
    assert half.W_enc.grad.dtype == torch.float32
