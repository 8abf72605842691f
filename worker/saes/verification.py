"""Is an SAE what it should be? Its fvu and L0 on its subject's activations, and what follows from them.

An SAE is verified when both agree with what its files state. Where they state nothing, they must be those of a trained
SAE: an fvu below that of an untrained one of the same sizes (tied random directions), and an L0 within 20% of k.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from orchestrator.config.job import Normalize, SaeConfig
from orchestrator.config.sae_facts import SaeFacts
from worker.evaluation.reconstruction import measure_reconstruction
from worker.sae.inference import InferenceSae
from worker.sae.init import initialise
from worker.sae.model import SparseAutoencoder
from worker.sae.normalize import normalize

LEAST_TOKENS = 4096
_CHUNK = 1024
_L0_OFF = 0.2
"""Relative difference of L0 that another text may make."""
_FVU_OFF = 0.25
"""The same of fvu: it differs more from text to text."""
_FVU_FLOOR = 0.02
_CLEARLY_BETTER = 0.9
"""A reading whose fvu is below this part of another's fits clearly better."""


class Found(NamedTuple):
    """What one reading of an SAE's files comes to."""

    name: str
    sae: InferenceSae
    fvu: float
    """Of the vectors as it normalises them."""
    fvu_raw: float
    l0: float
    untrained: float
    """What `fvu` is of an untrained SAE of its sizes, its L0 and its normalisation."""


def measure(readings: Mapping[str, InferenceSae], vectors: Tensor) -> dict[str, Found]:
    """Measure several readings of one SAE's files on raw activations, by their names.

    Shapes:
        vectors: (n_tokens, d_model)
    """
    untrained: dict[tuple[str, int], float] = {}
    found: dict[str, Found] = {}
    for name, sae in readings.items():
        fvu, fvu_raw, l0 = _reconstruction(sae, vectors)
        kind, k = _kind(sae.facts), min(sae.facts.n_latents, sae.facts.k or max(1, round(l0)))
        if (kind, k) not in untrained:
            untrained[kind, k] = _untrained_fvu(sae.facts, k, vectors)
        found[name] = Found(name, sae, fvu, fvu_raw, l0, untrained[kind, k])
    return found


@torch.no_grad()
def _reconstruction(sae: InferenceSae, vectors: Tensor) -> tuple[float, float, float]:
    """Return fvu in both spaces, and L0; sums in float64."""
    kind = _kind(sae.facts)
    means = [part.mean(0, dtype=torch.float64).float() for part in (vectors, normalize(vectors, kind).vectors)]
    sums = torch.zeros(5, dtype=torch.float64)
    for x in torch.split(vectors, _CHUNK):
        acts = sae.encode(x)
        error, normal = x - sae.decode(acts).float(), normalize(x, kind)
        terms = (error, x - means[0], error / normal.scale, normal.vectors - means[1])
        sums[:4] += torch.stack([term.square().sum(dtype=torch.float64) for term in terms]).cpu()
        sums[4] += (acts != 0).sum(dtype=torch.float64).cpu()
    raw, spread, normalised, normal_spread, n_active = sums.tolist()
    return normalised / normal_spread, raw / spread, n_active / len(vectors)


def _untrained_fvu(facts: SaeFacts, k: int, vectors: Tensor) -> float:
    """Return the fvu, of vectors as the SAE normalises them, of an untrained one of its sizes that keeps k latents."""
    model = SparseAutoencoder(SaeConfig(n_latents=facts.n_latents, k=k), facts.d_model).to(vectors.device)
    normal = normalize(vectors, _kind(facts)).vectors
    initialise(model, normal, seed=0)
    return measure_reconstruction(model, normal, chunk_tokens=_CHUNK).fvu


def why_not(found: Found) -> str:
    """Return why what was measured is not what it should be; empty where it is."""
    facts = found.sae.facts
    if not found.fvu < float("inf"):
        return "its outputs are not finite"
    if facts.stated_l0 is not None and abs(found.l0 - facts.stated_l0) > _L0_OFF * facts.stated_l0:
        return f"L0 is {found.l0:.1f}, and its files state {facts.stated_l0:.1f}"
    if facts.stated_fvu is not None:
        room = _FVU_OFF * facts.stated_fvu + _FVU_FLOOR
        if min(abs(fvu - facts.stated_fvu) for fvu in (found.fvu, found.fvu_raw)) > room:
            return f"fvu is {found.fvu:.4f}, and its files state {facts.stated_fvu:.4f}"
    elif not found.fvu < found.untrained:
        return f"fvu is {found.fvu:.4f}, and an untrained SAE of these sizes has {found.untrained:.4f}"
    if facts.stated_l0 is None and facts.k and abs(found.l0 - facts.k) > _L0_OFF * facts.k:
        return f"L0 is {found.l0:.1f}, and k is {facts.k}"
    return ""


def clearly_better(read: Found, others: Iterable[Found]) -> list[Found]:
    """Return the other readings that are as they should be and reconstruct clearly better than `read`."""
    better = [other for other in others if other.fvu_raw < _CLEARLY_BETTER * read.fvu_raw]
    return [other for other in better if not why_not(other)]


def _kind(facts: SaeFacts) -> Normalize:
    """Return how vectors are normalised for an fvu; one factor for all of them, or for each, is none of that."""
    return cast(Normalize, facts.normalize) if facts.normalize in ("unit", "layer_norm") else "none"
