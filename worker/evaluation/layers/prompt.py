"""One prompt at every layer: which latents are active on it, and where."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.errors import ConfigError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.layers.batches import LayerBatch, active, read_batch
from worker.evaluation.layers.latent_layers import LayerDistribution
from worker.evaluation.layers.maps import heat_map
from worker.evaluation.metric import Score
from worker.evaluation.structure.density import rounded
from worker.sae.inference import InferenceSae

LEAST_SUM = 1e-3
"""Latents whose summed activation is above it at no layer are left out, as in the released code."""


def prompt_text(context: EvaluationContext, prompt: str) -> Text:
    """Return the tokens of a prompt as a text of one context, with a BOS before it where contexts begin with one.

    Raises:
        ConfigError: it has no tokens that are measured, or more than the model reads at once.
    """
    subject, text = context.model()
    ids = subject.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError("layers.prompt has no tokens", hint="Give a text of one token or more.")
    bos = [] if text.tokens.bos_id is None else [text.tokens.bos_id]
    if subject.max_context is not None and len(bos + ids) > subject.max_context:
        raise ConfigError(
            f"layers.prompt has {len(bos + ids)} tokens, and the model reads {subject.max_context} at once",
            hint="Give a shorter text.",
        )
    ignored = set(text.contexts.ignored.nonzero()[0].tolist())
    is_measured = torch.tensor([[one not in ignored for one in bos + ids]])
    if not bool(is_measured.any()):
        raise ConfigError(
            "layers.prompt has special tokens alone, and data.special_tokens leaves those out",
            hint="Give a text that the tokenizer of the model knows.",
        )
    return Text(torch.tensor([bos + ids]), is_measured, torch.zeros(1, dtype=torch.long))


def read_prompt(contexts: Sequence[EvaluationContext], text: Text) -> LayerBatch:
    """Return the activations of a prompt at every layer."""
    return read_batch(contexts, text, first=0)


def prompt_sums(sae: InferenceSae, batch: LayerBatch) -> Float[Tensor, "n_layers n_latents"]:
    """Return the activations of each latent, summed over the tokens of a prompt."""
    found, n_latents = active(sae, batch.vectors), sae.facts.n_latents
    sums = torch.zeros(len(batch.vectors) * n_latents, dtype=torch.float64, device=found.value.device)
    sums.index_add_(0, found.layer * n_latents + found.latent, found.value.double())
    return sums.view(-1, n_latents).cpu()


def prompt_results(
    sums: Float[Tensor, "n_layers n_latents"], layers: Sequence[int], tokens: Sequence[str]
) -> tuple[Score, dict[str, Any]]:
    """Return how many latents a prompt has, with its heat map, and the file of them, sorted by E[L | j]."""
    at = torch.tensor(layers)
    latents = (sums.amax(0) > LEAST_SUM).nonzero()[:, 0]
    found = LayerDistribution.of(sums[:, latents], at)
    probabilities, order = found.probabilities[:, found.order], latents[found.order]
    told = {"tokens": list(tokens), "heat_map": heat_map(probabilities, at)}
    table = {
        "tokens": list(tokens),
        "layers": list(layers),
        "latents": order.tolist(),
        "sums": [rounded(row) for row in sums[:, order]],
    }
    return Score("prompt_latents", len(order), n=sums.shape[1], details=told), table
