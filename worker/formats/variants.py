"""Other ways to read an SAE whose files leave something open: activations decide which of them is right."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worker.sae.inference import InferenceSae, Scales

_NO_DIFFERENCE = 1e-6


class Variant(NamedTuple):
    """One way to read the same files."""

    name: str
    """What differs from how they were read."""
    flag: str
    """The same as `choice=value`, by which `chosen` finds it again; empty: as they were read."""
    sae: InferenceSae


def variants(sae: InferenceSae) -> list[Variant]:
    """Return an SAE as it was read, then with one thing read otherwise each; what makes no difference is left out.

    Whether b_dec is subtracted from the input; whether a number that the input is multiplied by is in the weights
    already; whether vectors are normalised at all; the units of a threshold (of the encoder's input, of the raw input,
    of the raw output, or relative to the norms of the decoder's rows); and, where d_model = n_latents, which way round
    each matrix is stored. They share their tensors: a variant costs what differs.
    """
    return [Variant("as read", "", sae), *_bias(sae), *_normalization(sae), *_threshold(sae), *_orientation(sae)]


def chosen(sae: InferenceSae, flag: str) -> InferenceSae | None:
    """Return the variant of that flag; None: there is none."""
    return next((variant.sae for variant in variants(sae) if variant.flag == flag), None)


def _bias(sae: InferenceSae) -> Iterator[Variant]:
    facts = sae.facts
    if facts.is_transcoder or sae.W_skip is not None or not bool((sae.b_dec != 0).any()):
        return
    subtracts = not facts.subtracts_bias
    word = "subtracted" if subtracts else "not subtracted"
    changed = sae.changed({}, facts=replace(facts, subtracts_bias=subtracts))
    yield Variant(f"the bias {word} from the input", f"bias={word.replace(' ', '-')}", changed)


def _normalization(sae: InferenceSae) -> Iterator[Variant]:
    facts = sae.facts
    if facts.normalize == "fixed":
        folded = sae.changed({}, facts=replace(facts, normalize="none"), scales=Scales())
        yield Variant("the input's scale is in the weights already", "norm=folded", folded)
    elif facts.normalize == "layer_norm":
        plain = sae.changed({}, facts=replace(facts, normalize="none"), scales=Scales())
        yield Variant("vectors as they are", "norm=none", plain)
    elif facts.normalize == "none" and not facts.is_transcoder:
        scales = Scales(undoes_eps=False)
        normalised = sae.changed({}, facts=replace(facts, normalize="layer_norm"), scales=scales)
        yield Variant("vectors centred and scaled to standard deviation 1", "norm=layer_norm", normalised)


def _threshold(sae: InferenceSae) -> Iterator[Variant]:
    if sae.threshold is None:
        return
    stored, scales = sae.threshold / sae.scales.threshold, sae.scales
    readings: list[tuple[str, Literal["encoder", "input", "output"], float]] = [
        ("the threshold in units of the encoder", "encoder", 1.0),
        ("the threshold in units of the raw input", "input", scales.input),
        ("the threshold in units of the raw output", "output", 1 / scales.output),
    ]
    seen = [scales.threshold]
    for name, unit, factor in readings:
        if all(abs(factor / other - 1) > _NO_DIFFERENCE for other in seen):
            seen.append(factor)
            changed = sae.changed({"threshold": stored * factor}, scales=scales._replace(threshold=factor))
            yield Variant(name, f"threshold={unit}", changed)
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    if bool((norms - 1).abs().max() > 1e-3) and bool((norms > 0).all()):
        facts = replace(sae.facts, selection="jumprelu")
        changed = sae.changed({"threshold": sae.threshold / norms}, facts=facts)
        yield Variant("the threshold of latents times the norms of their rows", "threshold=decoder-norm", changed)


def _orientation(sae: InferenceSae) -> Iterator[Variant]:
    if sae.facts.d_model != sae.facts.n_latents or len(sae.b_dec) != sae.facts.n_latents:
        return
    turns: dict[str, tuple[str, ...]] = {"W_enc": ("W_enc",), "W_dec": ("W_dec",), "both": ("W_enc", "W_dec")}
    for word, names in turns.items():
        turned: dict[str, Tensor] = {name: getattr(sae, name).T for name in names}
        yield Variant(f"turned: {' and '.join(names)}", f"turned={word}", sae.changed(turned))
