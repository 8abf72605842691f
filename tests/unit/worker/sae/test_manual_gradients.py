"""The fused path against the plain one: values, indices and every gradient."""

from typing import Any, NamedTuple

import pytest
import torch

from orchestrator.config.job import EncodeDtype, SaeConfig
from worker.sae import manual_gradients
from worker.sae.loss import losses
from worker.sae.model import SparseAutoencoder
from worker.sae.optimizer import unit_rows
from worker.sae.sparse import by_latent, sum_by_latent
from worker.sae.tiled_encode import Selected, select
from worker.sae.topk import rescored_top_k, top_k

VARIANCE = 1.7
SHAPES = [(1, 1, 1, 1), (1, 5, 9, 9), (7, 3, 11, 1), (33, 17, 70, 5), (40, 8, 64, 64), (12, 16, 129, 8)]
"""n_tokens, d_model, n_latents, k: a batch of one, odd widths, k = 1, k = n."""
DEAD = ["none", "one", "few", "many", "all"]


class Case(NamedTuple):
    model: SparseAutoencoder
    x: torch.Tensor
    config: SaeConfig
    dead: torch.Tensor | None


def _case(shape: tuple[int, int, int, int], dead: str = "none", *, ties: bool = False, **sae: Any) -> Case:
    n_tokens, d_model, n_latents, k = shape
    config = SaeConfig(**{"n_latents": n_latents, "k": k, "aux_coef": 0.3, **sae})
    model = SparseAutoencoder(config, d_model).double()
    generator = torch.Generator().manual_seed(sum(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if ties:
                parameter.copy_(parameter.round())
        model.W_dec[model.W_dec.norm(dim=1) == 0] = 1.0
        unit_rows(model.W_dec)
    x = torch.randn(n_tokens, d_model, generator=generator, dtype=torch.float64)
    share = {"none": 0.0, "one": 0.5 / n_latents, "few": 0.2, "many": 0.7, "all": 1.0}[dead]
    chosen = torch.randperm(n_latents, generator=generator)[: -int(-share * n_latents // 1)]
    mask = torch.zeros(n_latents, dtype=torch.bool)
    mask[chosen] = True
    return Case(model, x.round() if ties else x, config, None if dead == "none" else mask)


def _select(case: Case, **how: Any) -> Selected:
    model = case.model
    with torch.no_grad():
        return select(case.x, model.b_pre, (model.W_enc, model.b_enc), k=model.k_widest, **how)


def _compare(case: Case, variances: tuple[float, ...] = (VARIANCE,), **how: Any) -> None:
    model, terms = case.model, manual_gradients.LossTerms.of(case.model, case.config, variances=variances)
    encoded = model.encode(case.x, k=model.k_widest)
    assert encoded.top_indices is not None
    # A latent that fires is not dead: the fused path relies on it.
    if case.dead is not None:
        case.dead[encoded.top_indices[encoded.top_acts > 0]] = False
    dead = case.dead if case.dead is not None and case.dead.any() else None
    wanted = losses(model, case.x, encoded, config=case.config, variances=variances, dead=dead)
    gradients = torch.autograd.grad(wanted.total, manual_gradients.Weights.of(model))
    selected = _select(case, **how)
    assert torch.equal(selected.top_indices, encoded.top_indices)
    torch.testing.assert_close(selected.top_acts, encoded.top_acts.detach())
    weights = manual_gradients.Weights.of(model)
    found = manual_gradients.forward(weights, case.x, selected, terms=terms, dead=dead)
    torch.testing.assert_close(found.total, wanted.total.detach())
    torch.testing.assert_close(found.aux, wanted.aux.detach())
    mine = manual_gradients.backward(weights, selected, found, terms=terms, out=weights.like())
    for name, one, other in zip(manual_gradients.Weights._fields, mine, gradients, strict=True):
        torch.testing.assert_close(one, other, msg=f"the gradient of {name} is another")


@pytest.mark.parametrize("dead", ["none", "few", "many"])
@pytest.mark.parametrize("activation", ["topk", "multi_topk"])
def test_layers_of_unlike_variance_weigh_alike(activation: str, dead: str) -> None:
    _compare(_case((33, 17, 70, 5), dead, activation=activation), (1.7, 0.2, 40.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dead", DEAD)
def test_fused_is_plain(shape: tuple[int, int, int, int], dead: str) -> None:
    _compare(_case(shape, dead))


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("k_aux", [1, 2, 500])
def test_fused_is_plain_whichever_way_auxk_is_computed(dead: str, k_aux: int) -> None:
    """k_aux = 1: far fewer than the dead, so chosen ones; 2: a dense product; 500: all of them."""
    _compare(_case((33, 6, 70, 5), dead, k_aux=k_aux))


@pytest.mark.parametrize("dead", DEAD)
def test_fused_is_plain_with_ties(dead: str) -> None:
    _compare(_case((33, 3, 70, 5), dead, ties=True, k_aux=4))


@pytest.mark.parametrize("dead", DEAD)
def test_fused_is_plain_for_multi_topk(dead: str) -> None:
    _compare(_case((20, 7, 41, 3), dead, activation="multi_topk"))
    _compare(_case((20, 7, 10, 3), dead, activation="multi_topk"))  # 4k is cut at n


def test_what_lay_in_the_memory_of_a_sum_is_gone() -> None:
    values, rows, indices = torch.rand(7, 3), torch.randn(7, 5), torch.randint(0, 20, (7, 3))
    chosen = by_latent(indices, 30)
    out = torch.full((30, 5), torch.nan)
    assert torch.allclose(sum_by_latent(values, rows, chosen, out=out), sum_by_latent(values, rows, chosen), atol=1e-6)
    rows[2, 1] = torch.nan
    assert torch.equal(
        sum_by_latent(values, rows, chosen, out=out).isnan(), sum_by_latent(values, rows, chosen).isnan()
    )


@pytest.mark.parametrize("tile_bytes", [1, 5 * 70 * 8, 10**6])
def test_tiles_change_nothing(tile_bytes: int) -> None:
    _compare(_case((33, 17, 70, 5), "few"), tile_bytes=tile_bytes)


@pytest.mark.parametrize("watched", [range(70), range(0, 70, 3), "the dead", "the dead, filled up"])
@pytest.mark.parametrize("k_aux", [1, 500])
def test_what_was_watched_is_what_is_computed_again(watched: Any, k_aux: int) -> None:
    case = _case((33, 17, 70, 5), "few", k_aux=k_aux)
    assert case.dead is not None
    case.dead[_select(case).top_indices] = False
    among = case.dead.nonzero().squeeze(1)
    kinds = {"the dead": among, "the dead, filled up": manual_gradients.listed(case.dead, k_aux)}
    latents = kinds[watched] if isinstance(watched, str) else torch.tensor(watched)
    _compare(case, watched=latents)
    _compare(case, watched=latents, tile_bytes=5 * 70 * 8)


def test_without_a_spread_aux_is_zero_and_so_are_its_gradients() -> None:
    case = _case((1, 4, 9, 2), "few")  # one token: its error is the batch's mean
    _compare(case)


def test_a_value_that_is_not_finite_reaches_the_loss_and_leaves_no_aux() -> None:
    case = _case((6, 4, 9, 2))
    case.x[3, 1] = torch.nan
    selected = _select(case)
    terms = manual_gradients.LossTerms.of(case.model, case.config, variances=(VARIANCE,))
    dead = torch.zeros(9, dtype=torch.bool)
    dead[4] = True
    found = manual_gradients.forward(manual_gradients.Weights.of(case.model), case.x, selected, terms=terms, dead=dead)
    assert found.total.isnan()
    assert not found.aux.any()


def test_rounded_products_give_the_exact_values_of_the_exact_latents() -> None:
    """At k = 32 of 2,048 less than one latent in a thousand differs from full precision."""
    generator = torch.Generator().manual_seed(0)
    x, W_enc = (torch.randn(size, 64, generator=generator) for size in (256, 2048))
    b_enc = torch.randn(2048, generator=generator)
    exact = torch.addmm(b_enc, x, W_enc.T)
    wanted = top_k(exact, 32)
    values, indices = rescored_top_k((x.bfloat16() @ W_enc.bfloat16().T) + b_enc.bfloat16(), x, (W_enc, b_enc), 32)
    missing = sum(len(set(a) - set(b)) for a, b in zip(wanted.tolist(), indices.tolist(), strict=True))
    assert missing / wanted.numel() < 1e-3
    torch.testing.assert_close(values, exact.gather(1, indices))
    assert (values[:, 1:] <= values[:, :-1]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3"])
def test_a_rounded_encoder_is_the_same_fused_and_plain(dtype: EncodeDtype) -> None:
    config = SaeConfig(n_latents=128, k=4, k_aux=8)
    model = SparseAutoencoder(config, 32, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        unit_rows(model.W_dec)
    x = torch.randn(50, 32, generator=generator)
    dead = torch.zeros(128, dtype=torch.bool)
    dead[:40] = True
    selected = select(x, model.b_pre, (model.W_enc, model.b_enc), k=4, dtype=model.product_dtype)
    dead[selected.top_indices] = False
    wanted = losses(model, x, model.encode(x), config=config, variances=(VARIANCE,), dead=dead)
    terms = manual_gradients.LossTerms.of(model, config, variances=(VARIANCE,))
    weights = manual_gradients.Weights.of(model)
    found = manual_gradients.forward(weights, x, selected, terms=terms, dead=dead)
    torch.testing.assert_close(found.total, wanted.total.detach())
    mine = manual_gradients.backward(weights, selected, found, terms=terms, out=weights.like())
    for one, other in zip(mine, torch.autograd.grad(wanted.total, manual_gradients.Weights.of(model)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_does_not_hide_a_latent_that_is_not_a_number(sign: float) -> None:
    x, W_enc, b_enc = torch.randn(8, 16), torch.randn(4096, 16), torch.zeros(4096)
    W_enc[77] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    values, indices = rescored_top_k((x.bfloat16() @ W_enc.bfloat16().T), x, (W_enc, b_enc), 4)
    assert (indices == 77).any(1).all()
    assert values.isnan().any(1).all()
