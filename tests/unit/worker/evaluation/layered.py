"""A stand-in subject of several layers with latents planted in them, and contexts at every layer of a tiny model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.sae_facts import SaeFacts
from tests.unit.worker.evaluation.planted import VOCABULARY, StandIn, context_of, random_tokens, stand_in
from tests.unit.worker.evaluation.tiny_contexts import tiny_context
from worker.evaluation.context import EvaluationContext
from worker.sae.inference import InferenceSae
from worker.subject.hook_sites import HookPoint

LAYERS = 4
ALONE, EVERYWHERE, IN_TURN = 20, 10, 8
"""Latents of one token at one layer; of one token at all layers; of four tokens, each at a layer of its own."""
_GROUPS = LAYERS + 2


class _Layer(nn.Module):
    """One-hot vectors of the token: in a group of dimensions of this layer's own, in one that all layers share, and in
    one where each layer has every fourth token.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(ids, VOCABULARY).float()
        groups = [torch.zeros_like(one_hot) for _ in range(_GROUPS)]
        groups[self._layer] = groups[LAYERS] = one_hot
        groups[LAYERS + 1] = one_hot * (ids % LAYERS == self._layer)[..., None]
        return torch.cat(groups, dim=-1)


class _Layered(StandIn):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer) for layer in range(LAYERS))

    def forward(self, input_ids: Tensor, *, use_cache: bool = False) -> Any:
        for layer in self.layers:
            layer(input_ids)
        return super().forward(input_ids)


def layered_contexts(folder: Path, *, heldout_tokens: int = 16_384, **more: Any) -> list[EvaluationContext]:
    """Return a context of every layer of the stand-in, over random tokens."""
    tokens = random_tokens(folder / "text.u16", n_contexts=heldout_tokens // 16 + 40)
    first = replace(
        stand_in(), model=_Layered().eval().requires_grad_(False), d_model=_GROUPS * VOCABULARY, n_layers=LAYERS
    )
    context = context_of(first, tokens, folder / "store", heldout_tokens=heldout_tokens, **more)
    return [
        replace(context, subject=replace(first, hook=HookPoint(f"layers.{layer}", layer=layer)))
        for layer in range(LAYERS)
    ]


def planted_latents() -> InferenceSae:
    """Return an SAE of `ALONE` + `EVERYWHERE` + `IN_TURN` latents, each active at 1."""
    reads = [[latent % LAYERS * VOCABULARY + 2 + latent] for latent in range(ALONE)]
    reads += [[LAYERS * VOCABULARY + 2 + ALONE + latent] for latent in range(EVERYWHERE)]
    reads += [
        [(LAYERS + 1) * VOCABULARY + 4 + LAYERS * latent + turn for turn in range(LAYERS)] for latent in range(IN_TURN)
    ]
    width = _GROUPS * VOCABULARY
    encoder = torch.zeros(width, len(reads))
    for latent, dimensions in enumerate(reads):
        encoder[dimensions, latent] = 1.0
    facts = SaeFacts(
        selection="relu", d_model=width, n_latents=len(reads), normalize="none", subtracts_bias=False, dtype="float32",
        layers=tuple(range(LAYERS)),
    )  # fmt: skip
    tensors = {
        "W_enc": encoder,
        "b_enc": torch.zeros(len(reads)),
        "W_dec": nn.functional.normalize(encoder.T),
        "b_dec": torch.zeros(width),
    }
    return InferenceSae(facts, tensors)


def tiny_layers(folder: Path, **more: Any) -> list[EvaluationContext]:
    """Return a context of every layer of a tiny random model."""
    first = tiny_context(folder, layer=0, **more)
    subject, _ = first.model()
    places = [subject.config.model_copy(update={"layer": layer}) for layer in range(subject.n_layers)]
    return [
        replace(first, subject=subject.at(place), config=first.config.model_copy(update={"subject": place}))
        for place in places
    ]
