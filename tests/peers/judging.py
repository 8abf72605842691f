"""What it means that two programs make the same of an SAE."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.made_saes import apart
from worker.sae.inference import InferenceSae

WITHIN = 1e-5


class Judged(NamedTuple):
    """What another program makes of raw activations."""

    latents: Tensor
    reconstruction: Tensor


def assert_same(ours: InferenceSae, theirs: Judged, x: Tensor) -> None:
    """Check latents, which of them are active, and reconstructions.

    A latent whose pre-activation equals its threshold, or 0 where it has none, but for rounding may be active in one
    and not in the other: the few vectors that have one are left out.
    """
    z = ours.encode(x)
    assert int((z > 0).sum()) > len(x), "hardly any latent is active: this judges nothing"
    clear = ~_on_the_edge(ours, z, theirs.latents)
    assert int((~clear).sum()) <= len(x) / 100
    assert torch.equal(z[clear] > 0, theirs.latents[clear] > 0)
    assert apart(z[clear], theirs.latents[clear]) < WITHIN
    assert apart(ours(x)[clear], theirs.reconstruction[clear]) < WITHIN
    if ours.W_skip is None:
        ours.encode(x)
        assert apart(ours.decode(z)[clear], theirs.reconstruction[clear]) < WITHIN


def _on_the_edge(ours: InferenceSae, z: Tensor, other: Tensor) -> Tensor:
    differs = (z > 0) != (other > 0)
    larger = torch.maximum(z, other)
    above = larger / z.max() if ours.threshold is None else larger / ours.threshold - 1
    return (differs & (above.abs() < 2 * WITHIN)).any(1)


@torch.no_grad()
def encode_and_decode(sae: Any, x: Tensor) -> Judged:
    """Return what an SAE with encode and decode of dense latents gives: of SAELens, of dictionary_learning."""
    z = sae.encode(x)
    z = z.to_dense() if z.is_sparse else z
    return Judged(z, sae.decode(z) if getattr(sae, "W_skip", None) is None else sae(x))


@torch.no_grad()
def sparsify(sae: Any, x: Tensor) -> Judged:
    """Return what a SparseCoder gives."""
    top_acts, top_indices, _ = sae.encode(x)
    z = torch.zeros(len(x), sae.num_latents).scatter(1, top_indices, top_acts)
    return Judged(z, sae(x).sae_out)
