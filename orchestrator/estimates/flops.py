"""What a config costs at most, before it runs: tokens and FLOPs. Pure, but for reading a width from a config.json."""

import json
from pathlib import Path
from typing import NamedTuple

from orchestrator.bounded_file import read_text
from orchestrator.config import synthetic
from orchestrator.config.activation_functions import ACTIVATIONS, reconstruction_sizes
from orchestrator.config.job import SHIPPED_SUBJECT, JobConfig, SaeConfig, SubjectConfig

SHIPPED_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "subject"
"""The model that ships here."""

_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")


class Cost(NamedTuple):
    """The most a job can use; it stops earlier when it converges."""

    tokens: int
    """Training tokens: the budget."""
    d_model: int | None
    """Width at the hook point; None = known only when the subject is loaded."""
    n_latents: int | None
    flops_dense: float | None
    """12·n·D per token, + 6·n·D per token once latents can be dead."""
    flops_executed: float | None
    """2·n·D + 8·k·D per token, + 8·k_aux·D per token once latents can be dead."""


def estimate(config: JobConfig, d_model: int | None) -> Cost:
    """Return the cost of a config's whole budget at a given width, AuxK active as soon as a latent can be dead.

    Source: numerics 5.
    """
    sae, tokens = config.sae, config.training.max_tokens
    if d_model is None:
        return Cost(tokens, None, sae.n_latents, None, None)
    n_latents = sae.latents(d_model)
    aux_tokens = max(0, tokens - config.dead_after_tokens(d_model)) if sae.aux_coef > 0 else 0
    dense = tokens * dense_flops(n_latents, d_model) + aux_tokens * dense_aux_flops(n_latents, d_model)
    aux = aux_tokens * executed_aux_flops(sae.aux_latents(d_model), d_model)
    executed = tokens * step_flops(sae, d_model) + aux
    return Cost(tokens, d_model, n_latents, float(dense), float(executed))


def dense_flops(n_latents: int, d_model: int) -> int:
    """Return the FLOPs per token of a step in which every product is dense: 12·n·D."""
    return 12 * n_latents * d_model


def dense_aux_flops(n_latents: int, d_model: int) -> int:
    """Return what active AuxK adds to `dense_flops`: 6·n·D."""
    return 6 * n_latents * d_model


def executed_flops(n_latents: int, d_model: int, k: int) -> int:
    """Return the FLOPs per token of a step with sparse decode and gradients: 2·n·D + 8·k·D."""
    return 2 * n_latents * d_model + 8 * k * d_model


def step_flops(sae: SaeConfig, d_model: int) -> int:
    """Return what a step executes per token: sparse where latents are chosen per token, else dense.

    multi_topk decodes both k and 4k latents.
    """
    n_latents = sae.latents(d_model)
    if not ACTIVATIONS[sae.activation].selects_per_token:
        return dense_flops(n_latents, d_model)
    decoded = sum(k for k, _ in reconstruction_sizes(sae.activation, k=sae.k, n_latents=n_latents))
    return executed_flops(n_latents, d_model, decoded)


def executed_aux_flops(k_aux: int, d_model: int) -> int:
    """Return what active AuxK adds to `executed_flops`: 8·k_aux·D."""
    return 8 * k_aux * d_model


def hook_width(subject: SubjectConfig) -> int | None:
    """Return the width at the hook point where it is the model's own; None where only loading the model tells."""
    return known_width(subject.model) if subject.has_model_width else None


def known_width(model: str) -> int | None:
    """Return the width that a synthetic subject, or the config.json of a local folder, names; or None.

    Source: `model`, a distribution, a folder, or the model that ships here.
    """
    if synthetic.is_synthetic(model):
        return synthetic.parse(model).d_model
    folder = SHIPPED_FOLDER if model == SHIPPED_SUBJECT else Path(model)
    try:
        found = json.loads(read_text(folder / "config.json", what="a model's config"))
    except (OSError, ValueError, RecursionError):
        return None
    found = found if isinstance(found, dict) else {}
    text = found.get("text_config")  # where a model of several modalities keeps its decoder
    for part in (found, text if isinstance(text, dict) else {}):
        for width in map(part.get, _WIDTH_KEYS):
            if type(width) is int and width > 0:
                return width
    return None
