"""The form in which SAEs are used: what our own models give, in raw space, and what other programs ask of it."""

from dataclasses import replace

import pytest
import torch

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import Normalize
from orchestrator.errors import ConfigError
from tests.made_saes import (
    ACTIVATIONS,
    D_MODEL,
    N_LATENTS,
    NORMALIZATIONS,
    K,
    apart,
    facts,
    gated,
    inputs,
    made,
    trained,
)
from worker.sae.inference import InferenceSae
from worker.sae.normalize import denormalize, normalize


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_gives_what_our_own_model_gives(activation: Activation, kind: Normalize) -> None:
    x = inputs()
    model, sae = trained(activation, kind), made(activation, kind)
    vectors, mean, scale = normalize(x, kind)
    _, top_acts, top_indices = model.encode(vectors)
    acts = top_acts if top_indices is None else torch.zeros(64, N_LATENTS).scatter(1, top_indices, top_acts)
    assert torch.equal(sae(x), denormalize(model(vectors), mean, scale))
    assert torch.equal(sae.encode(x), acts)
    assert apart(sae.decode(sae.encode(x)), sae(x)) < 1e-6
    values, indices = sae.encode_sparse(x)
    assert torch.equal(torch.zeros(64, N_LATENTS).scatter(1, indices, values), acts)
    assert values.shape[1] == (K if activation == "topk" else int((acts > 0).sum(1).max()))


def test_what_equals_the_threshold_of_batchtopk_is_kept() -> None:
    """Ours keeps a ≥ threshold, every other program a > threshold."""
    model = trained("batchtopk", "none")
    x = inputs()
    a_value = model.eval().encode(x).pre_acts.max()
    model.own["threshold"].copy_(a_value)
    sae = InferenceSae.from_trained(model, facts("batchtopk"))
    assert int((sae.encode(x) > 0).sum()) == 1
    assert torch.equal(sae.encode(x), model.encode(x).top_acts)


def test_leading_dimensions_are_kept() -> None:
    sae, x = made("topk", "unit"), inputs().view(4, 16, D_MODEL)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (4, 16, N_LATENTS)
    assert sae.encode_sparse(x).values.shape == (4, 16, K)
    assert torch.equal(sae(x).view(64, D_MODEL), sae(x.view(64, D_MODEL)))
    assert apart(sae.decode(sae.encode(x)), sae(x)) < 1e-6


def test_decode_uses_the_statistics_of_the_last_encode_and_says_where_it_has_none() -> None:
    sae, x = made("topk", "unit"), inputs()
    with pytest.raises(ConfigError, match="encode comes before decode"):
        sae.decode(torch.zeros(64, N_LATENTS))
    z = sae.encode(x)
    without = sae.decode(z * 0)
    assert apart(sae.decode(z), sae(x)) < 1e-6
    assert torch.equal(sae.decode(z * 0), without)
    with pytest.raises(ConfigError, match="latents of 3 vectors, and the last encode was of 64"):
        sae.decode(z[:3])
    plain = made("topk")
    assert plain.decode(z[:3]).shape == (3, D_MODEL)


def test_gated_is_the_formula_of_its_paper() -> None:
    """Source: Rajamanoharan et al. 2024, Improving dictionary learning with gated SAEs, section 3.2."""
    sae, x = gated(), inputs()
    assert sae.b_mag is not None
    assert sae.r_mag is not None
    shared = (x - sae.b_dec) @ sae.W_enc
    wanted = ((shared + sae.b_enc) > 0) * torch.relu(shared * sae.r_mag.exp() + sae.b_mag)
    assert apart(sae.encode(x), wanted) < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_unit_rows_leave_the_reconstruction_and_the_active_latents(activation: Activation) -> None:
    sae, x = made(activation), inputs()
    sae = sae.changed({"W_dec": sae.W_dec * torch.linspace(0.2, 3, N_LATENTS)[:, None]})
    unit = sae.with_unit_rows()
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(N_LATENTS))
    assert apart(unit(x), sae(x)) < 1e-6
    assert torch.equal(unit.encode(x) > 0, sae.encode(x) > 0)


def test_what_saebench_asks_of_an_sae() -> None:
    sae = made("topk", "unit")
    assert sae.W_enc.shape == (D_MODEL, N_LATENTS)
    assert sae.W_dec.shape == (N_LATENTS, D_MODEL)
    assert (sae.b_enc.shape, sae.b_dec.shape) == ((N_LATENTS,), (D_MODEL,))
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.hook_layer) == (D_MODEL, N_LATENTS, 3)
    assert (sae.cfg.model_name, sae.cfg.hook_name) == ("openai-community/gpt2", "blocks.3.hook_resid_post")
    moved = sae.to("cpu", torch.bfloat16)
    assert moved is sae
    assert (sae.dtype, sae.device.type, sae.cfg.dtype) == (torch.bfloat16, "cpu", "bfloat16")
    assert sae(inputs()).dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_a_skip_transcoder_adds_its_linear_map_in_forward_alone() -> None:
    base, x = made("topk"), inputs()
    W_skip = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1))
    transcodes = replace(base.facts, subtracts_bias=False, target_hook_point="mlp")
    sae = base.changed({"W_skip": W_skip}, facts=transcodes)
    assert apart(sae(x) - sae.decode(sae.encode(x)), x @ W_skip.T) < 1e-6


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("W_dec", torch.zeros(D_MODEL, N_LATENTS), r"W_dec has the shape \(16, 48\).*it is \(48, 16\)"),
        ("b_enc", torch.full((N_LATENTS,), torch.nan), "b_enc has values that are not finite"),
        ("b_dec", torch.zeros(D_MODEL, dtype=torch.int64), "b_dec holds int64, not floats"),
        ("threshold", torch.zeros(3), r"threshold has the shape \(3,\)"),
    ],
)
def test_wrong_tensors_are_refused(name: str, tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        InferenceSae(facts("jumprelu"), made("jumprelu").tensors() | {name: tensor})


def test_missing_tensors_are_refused() -> None:
    tensors = made("topk").tensors()
    with pytest.raises(ConfigError, match="jumprelu needs threshold"):
        InferenceSae(facts("jumprelu"), tensors)
    with pytest.raises(ConfigError, match="k = 49 does not fit 48 latents"):
        InferenceSae(replace(facts("topk"), k=49), tensors)


def test_latents_that_were_set_by_hand_are_all_decoded() -> None:
    sae, x = made("topk"), inputs()
    z = sae.encode(x)
    assert torch.allclose(sae.decode(z), sae(x), rtol=1e-6, atol=1e-7)
    z[:, :2] += torch.tensor([1.0, -1.0])
    assert apart(sae.decode(z), z @ sae.W_dec + sae.b_dec) < 1e-6


@pytest.mark.parametrize(
    "sae", [*(made(activation, "unit") for activation in ACTIVATIONS), gated()], ids=[*ACTIVATIONS, "gated"]
)
def test_an_active_latent_has_its_pre_activation(sae: InferenceSae) -> None:
    x = inputs().view(4, 16, D_MODEL)
    acts, pre_acts = sae.encode(x), sae.pre_acts(x)
    assert pre_acts.shape == (4, 16, N_LATENTS)
    torch.testing.assert_close(pre_acts[acts > 0], acts[acts > 0])
    assert (pre_acts < 0).any()
    for some in (slice(3, 9), torch.tensor([7, 2, 2])):
        torch.testing.assert_close(sae.pre_acts(x, some), pre_acts[..., some])
    kept = sae.decode(acts)
    sae.pre_acts(x[:1])
    assert torch.equal(sae.decode(acts), kept)  # what `decode` needs of the last `encode` is left


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_reconstruction_is_differentiable(activation: Activation, kind: Normalize) -> None:
    sae, x = made(activation, kind), inputs().requires_grad_()
    sae(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
