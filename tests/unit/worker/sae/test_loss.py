"""Losses against hand-made answers and float64 autograd: who gets a gradient of AuxK, and who gets none."""

from typing import Any

import pytest
import torch

from orchestrator.config.job import SaeConfig
from worker.sae.loss import Losses, aux_loss, losses, narrowed, reconstruction_loss
from worker.sae.model import SparseAutoencoder
from worker.sae.optimizer import unit_rows

N_LATENTS, D_MODEL, N_TOKENS = 24, 8, 40


def _setup(**sae: Any) -> tuple[SparseAutoencoder, torch.Tensor, SaeConfig]:
    config = SaeConfig(**{"n_latents": N_LATENTS, "k": 4, **sae})
    model = SparseAutoencoder(config, D_MODEL).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (model.W_enc, model.b_enc, model.W_dec, model.b_pre):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        unit_rows(model.W_dec)
    return model, torch.randn(N_TOKENS, D_MODEL, generator=generator, dtype=torch.float64), config


def _dead(*which: int) -> torch.Tensor:
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[list(which)] = True
    return dead


def _losses(model: SparseAutoencoder, x: torch.Tensor, config: SaeConfig, dead: torch.Tensor | None = None) -> Losses:
    return losses(model, x, model.encode(x, k=model.k_widest), config=config, variances=(2.0,), dead=dead)


def _aux_by_hand(model: SparseAutoencoder, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """AuxK written densely, with a mask of −∞ and a scatter, b_pre and the error constant."""
    error = (x - model(x)).detach()
    pre_acts = (x - model.b_pre.detach()) @ model.W_enc.T + model.b_enc
    values, indices = pre_acts.masked_fill(~dead, -torch.inf).topk(model.k_aux)
    z = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    spread = (error - error.mean(0)).square().sum()
    both: torch.Tensor = torch.stack([(error - z @ model.W_dec).square().sum(), error.square().sum()]) / spread
    return both


def test_reconstruction_loss_by_hand() -> None:
    x, found = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert reconstruction_loss(x, found, variances=(5.0,)).item() == pytest.approx((4 + 9) / (2 * 5.0))


def test_every_layer_weighs_alike_in_units_of_its_own_variance() -> None:
    """The first two rows are of one layer, the last two of another, a hundred times as large."""
    x, found = torch.zeros(4, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [10.0, 0.0], [0.0, 20.0]])
    loss = reconstruction_loss(x, found, variances=(3.0, 300.0))
    assert loss.item() == pytest.approx(((1 + 4) / (2 * 3.0) + (100 + 400) / (2 * 300.0)) / 2)


def test_without_dead_latents_aux_is_exactly_zero() -> None:
    model, x, config = _setup()
    found = _losses(model, x, config)
    assert not found.aux.any()
    torch.testing.assert_close(found.total, reconstruction_loss(x, model(x), variances=(2.0,)))


@pytest.mark.parametrize("which", [(1,), (0, 5, 9), tuple(range(12)), tuple(range(N_LATENTS))])
def test_aux_and_its_gradients_are_those_of_the_dense_formula(which: tuple[int, ...]) -> None:
    model, x, config = _setup(k_aux=4)
    dead = _dead(*which)
    found = _losses(model, x, config, dead).aux
    wanted = _aux_by_hand(model, x, dead)
    torch.testing.assert_close(found, wanted)
    parameters = (model.W_enc, model.b_enc, model.W_dec)
    gradients = torch.autograd.grad(found[0], parameters, retain_graph=True)
    for one, other in zip(gradients, torch.autograd.grad(wanted[0], parameters), strict=True):
        torch.testing.assert_close(one, other)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)  # the encoder learns from AuxK
    for gradient in gradients:
        assert not gradient[~dead].any()  # live rows get none
    (b_pre,) = torch.autograd.grad(found[0], (model.b_pre,), allow_unused=True)
    assert b_pre is None


def test_total_adds_alpha_times_aux() -> None:
    model, x, config = _setup(aux_coef=0.25)
    dead = _dead(2, 3)
    plain, both = _losses(model, x, config), _losses(model, x, config, dead)
    torch.testing.assert_close(both.total, plain.total + 0.25 * both.aux[0])
    assert _losses(model, x, SaeConfig(n_latents=N_LATENTS, k=4, aux_coef=0.0), dead).aux.equal(torch.zeros(2))


def test_no_bias_in_the_auxiliary_reconstruction() -> None:
    model, x, _ = _setup()
    encoded, dead = model.encode(x), _dead(7)
    error = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64)
    before = aux_loss(model, x, encoded.pre_acts, error=error, dead=dead)
    with torch.no_grad():
        model.b_pre.add_(10.0)  # the pre-activations given stay those of before
    torch.testing.assert_close(aux_loss(model, x, encoded.pre_acts, error=error, dead=dead), before)


def test_a_silent_dead_latent_leaves_aux_at_the_error_alone() -> None:
    model, x, _ = _setup()
    with torch.no_grad():
        model.b_enc[7] = -1e6
    error = torch.randn(N_TOKENS, D_MODEL, dtype=torch.float64)
    found = aux_loss(model, x, model.encode(x).pre_acts, error=error, dead=_dead(7))
    nothing = error.square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(found, torch.stack([nothing, nothing]))


def test_aux_without_a_spread_is_zero_and_so_is_its_gradient() -> None:
    model, x, _ = _setup()
    for error in (torch.zeros(N_TOKENS, D_MODEL), torch.ones(N_TOKENS, D_MODEL)):
        found = aux_loss(model, x, model.encode(x).pre_acts, error=error.double(), dead=_dead(0, 1))
        assert not found.any()
        for gradient in torch.autograd.grad(found[0], (model.W_enc, model.W_dec)):
            assert not gradient.any()


def test_multi_topk_adds_an_eighth_of_the_loss_at_4k() -> None:
    model, x, config = _setup(activation="multi_topk")
    wide, narrow = model.encode(x, k=16), model.encode(x, k=4)
    expected = reconstruction_loss(x, model.decode(narrow.top_acts, narrow.top_indices), variances=(2.0,))
    expected = expected + reconstruction_loss(x, model.decode(wide.top_acts, wide.top_indices), variances=(2.0,)) / 8
    torch.testing.assert_close(_losses(model, x, config).total, expected)
    assert torch.equal(narrowed(wide, 4).top_acts, narrow.top_acts)


def test_relu_and_jumprelu_penalties() -> None:
    for activation in ("relu", "jumprelu"):
        model, x, config = _setup(activation=activation, sparsity_coef=0.5)
        encoded = model.encode(x)
        with torch.no_grad():
            model.W_dec.mul_(2)
        found = _losses(model, x, config).total - reconstruction_loss(x, model(x), variances=(2.0,))
        by_norm = 2 * encoded.top_acts.sum(1).mean()
        torch.testing.assert_close(found, 0.5 * (by_norm if activation == "relu" else _l0(encoded.top_acts)))


def _l0(top_acts: torch.Tensor) -> torch.Tensor:
    return (top_acts > 0).double().sum(1).mean()
