"""Activations of some of an SAE's latents: no more is encoded than the selection needs."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from worker.sae.inference import InferenceSae

_CHUNK_TOKENS = 4096
_CHUNK_VALUES = 1 << 24


class Firings(NamedTuple):
    """Where some latents are active, in the order of the text."""

    positions: NDArray[np.int32]
    """Number of the token, contexts after one another."""
    slots: NDArray[np.int32]
    """Which of the latents asked for."""
    values: NDArray[np.float32]
    """Activations, above 0."""

    def by_slot(self, n: int) -> "list[Firings]":
        """Return those of each of n latents, each in the order of the text."""
        order = np.argsort(self.slots, kind="stable")
        bounds = np.searchsorted(self.slots[order], np.arange(n + 1))
        return [self.chosen(order[low:high]) for low, high in pairwise(bounds)]

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "Firings":
        """Return some of them."""
        return Firings(self.positions[which], self.slots[which], self.values[which])


@torch.no_grad()
def find_firings(
    sae: InferenceSae,
    latents: Int[Tensor, " n_wanted"],
    activations: Float[Tensor, "n_contexts context d_model"],
    is_measured: Bool[Tensor, "n_contexts context"],
    on_progress: Callable[[float], None],
) -> Firings:
    """Find every activation of some latents at the positions that count."""
    vectors, counts = activations.flatten(0, 1), is_measured.flatten()
    size = max(1, min(_CHUNK_TOKENS, _CHUNK_VALUES // len(latents)))
    slot_of = torch.full((sae.facts.n_latents,), -1)
    slot_of[latents] = torch.arange(len(latents))
    own = None if sae.facts.selection == "topk" else with_latents(sae, latents)
    found = []
    for start in range(0, len(vectors), size):
        on_progress(start / len(vectors))
        here = counts[start : start + size].nonzero()[:, 0]
        x = vectors[start : start + size][here].to(sae.device)
        if own is None:
            values, slots = (part.cpu() for part in sae.encode_sparse(x))
            slots = slot_of[slots]
        else:
            values = own.encode(x).cpu()
            slots = torch.arange(len(latents)).expand_as(values)
        rows, columns = ((values > 0) & (slots >= 0)).nonzero(as_tuple=True)
        parts = (here[rows] + start, slots[rows, columns], values[rows, columns])
        found.append([part.float().numpy() if part.is_floating_point() else part.int().numpy() for part in parts])
    return Firings(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def activation_of_each(
    sae: InferenceSae, x: Float[Tensor, "n d_model"], latents: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the activation of one latent for each vector, each vector's own, on the CPU."""
    if sae.facts.selection == "topk":
        values, indices = sae.encode_sparse(x)
        return (values * (indices == latents.to(indices.device)[:, None])).sum(1).float().cpu()
    distinct, slots = torch.unique(latents, return_inverse=True)
    return with_latents(sae, distinct).encode(x).cpu().gather(1, slots[:, None])[:, 0].float()


def with_latents(sae: InferenceSae, latents: Int[Tensor, " n_wanted"]) -> InferenceSae:
    """Return an SAE of some of the latents. They are as they were where each is selected by itself: not with topk."""
    assert sae.facts.selection != "topk"
    which = latents.to(sae.device)
    changes: dict[str, Tensor] = {"W_enc": sae.W_enc[:, which], "b_enc": sae.b_enc[which], "W_dec": sae.W_dec[which]}
    own = {"threshold": sae.threshold, "b_mag": sae.b_mag, "r_mag": sae.r_mag, "rank": sae.rank}
    changes |= {name: value[which] for name, value in own.items() if value is not None and value.ndim}
    return sae.changed(changes, facts=replace(sae.facts, n_latents=len(which)))
