"""Small SAEs of every kind with random weights, and inputs for them."""

from typing import get_args

import torch
from torch import Tensor

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import Normalize, SaeConfig
from orchestrator.config.sae_facts import SaeFacts, Selection
from worker.sae.inference import InferenceSae
from worker.sae.model import SparseAutoencoder

D_MODEL, N_LATENTS, K = 16, 48, 5
ACTIVATIONS: tuple[Activation, ...] = ("topk", "batchtopk", "jumprelu", "relu")
NORMALIZATIONS: tuple[Normalize, ...] = get_args(Normalize)


def inputs(n_tokens: int = 64) -> Tensor:
    """Return raw activations: off centre, of lengths that differ."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n_tokens, D_MODEL, generator=generator)
    return x * torch.linspace(1, 9, n_tokens)[:, None] + 2


def trained(activation: Activation, normalize: Normalize) -> SparseAutoencoder:
    """Return an SAE of our own with random weights and unit rows."""
    model = SparseAutoencoder(
        SaeConfig(activation=activation, n_latents=N_LATENTS, k=K, normalize=normalize), D_MODEL
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))
        if activation == "jumprelu":
            model.own["log_threshold"].copy_(torch.linspace(-3, -1, N_LATENTS))
        if activation == "batchtopk":
            model.own["threshold"].fill_(0.3)
    return model.requires_grad_(False)


def facts(selection: Selection, normalize: Normalize = "none") -> SaeFacts:
    """Return what is known of such an SAE."""
    return SaeFacts(
        selection=selection,
        d_model=D_MODEL,
        n_latents=N_LATENTS,
        normalize=normalize,
        subtracts_bias=True,
        dtype="float32",
        k=K if selection in {"topk", "batchtopk"} else None,
        subject="openai-community/gpt2",
        layers=(3,),
        site="resid_post",
        hook_point="transformer.h.3",
        context_length=128,
        prepend_bos=False,
    )


def made(activation: Activation, normalize: Normalize = "none") -> InferenceSae:
    """Return an SAE of our own in the form in which it is used."""
    selection: Selection = "topk" if activation == "multi_topk" else activation
    return InferenceSae.from_trained(trained(activation, normalize), facts(selection, normalize))


def gated() -> InferenceSae:
    """Return a gated SAE, which is not trained here."""
    base = made("relu")
    generator = torch.Generator().manual_seed(9)
    b_mag, r_mag = (torch.randn(N_LATENTS, generator=generator) * 0.2 for _ in range(2))
    return InferenceSae(facts("gated"), base.tensors() | {"b_mag": b_mag, "r_mag": r_mag})


def apart(found: Tensor, wanted: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
