"""A text, read at all layers in one forward pass, batch by batch; and the latents that are active there."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orchestrator.errors import SubjectError
from worker.activations.forward import tokens_per_pass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText, Text
from worker.sae.inference import InferenceSae
from worker.subject.model import read


class LayerBatch(NamedTuple):
    """The measured tokens of some contexts, at every layer."""

    vectors: Sequence[Float[Tensor, "n_tokens d_model"]]
    """As the SAEs read them, raw or mapped by a lens, float32: one tensor for each layer, of the same tokens."""
    rows: Int[Tensor, " n_tokens"]
    """The context of each token, by its number in the text."""
    positions: Int[Tensor, " n_tokens"]
    """Of each token in the flattened text."""
    first: int
    """Number of the batch's first context."""
    n_contexts: int


class Active(NamedTuple):
    """The activations above 0 of one batch, one entry each."""

    layer: Int[Tensor, " n_active"]
    """Place in the list of layers, from 0."""
    token: Int[Tensor, " n_active"]
    """Place in the batch."""
    latent: Int[Tensor, " n_active"]
    value: Float[Tensor, " n_active"]


def text_of(text: HeldoutText, tokens: int | None) -> Text:
    """Return the contexts of so many tokens: of the held-out text the last ones, then contexts before it, too."""
    heldout = text.heldout
    n_contexts = len(heldout) if tokens is None else -(-tokens // heldout.ids.shape[1])
    if n_contexts <= len(heldout):
        return heldout.chosen(slice(len(heldout) - n_contexts, None))
    parts = (text.before(n_contexts - len(heldout)), heldout)
    return Text(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "is_measured", "numbers")))


def layer_batches(contexts: Sequence[EvaluationContext], text: Text, phase: str) -> Iterator[LayerBatch]:
    """Yield the activations of a text, at the layer of each context; `progress` is told of each batch.

    Raises:
        SubjectError: there are activations that are not finite.
    """
    subjects = [context.model()[0] for context in contexts]
    width = text.ids.shape[1]
    size = max(1, tokens_per_pass(subjects[0], width) // width)
    for first in range(0, len(text), size):
        contexts[0].progress(phase, first / len(text))
        part = text.chosen(slice(first, first + size))
        yield read_batch(contexts, part, first=first)


def read_batch(contexts: Sequence[EvaluationContext], part: Text, *, first: int) -> LayerBatch:
    """Return what SAEs read of some contexts that follow one another, of which `first` is the first.

    Raises:
        SubjectError: there are activations that are not finite.
    """
    subjects = [context.model()[0] for context in contexts]
    device = subjects[0].device
    is_measured = part.is_measured.to(device)
    rows, columns = is_measured.nonzero(as_tuple=True)
    vectors = [found[is_measured].float() for found in read(subjects, part.ids.to(device))]
    for subject, found in zip(subjects, vectors, strict=True):
        if not bool(found.sum(dtype=torch.float32).isfinite()) and not bool(found.isfinite().all()):
            raise SubjectError(
                f"activations at {subject.hook} are not finite, in one of the measured contexts {first} to "
                f"{first + len(part) - 1}",
                hint="Set subject.dtype: float32 (or bfloat16), or leave that layer out.",
            )
    vectors = [context.into(found) for context, found in zip(contexts, vectors, strict=True)]
    rows = rows + first
    return LayerBatch(vectors, rows, rows * part.ids.shape[1] + columns, first, len(part))


def active(sae: InferenceSae, vectors: Sequence[Float[Tensor, "n_tokens d_model"]]) -> Active:
    """Encode the vectors of every layer."""
    parts = []
    for layer, x in enumerate(vectors):
        acts = sae.encode_sparse(x)
        token, slot = (acts.values > 0).nonzero(as_tuple=True)
        parts.append((torch.full_like(token, layer), token, acts.indices[token, slot], acts.values[token, slot]))
    return Active(*(torch.cat(part) for part in zip(*parts, strict=True)))
