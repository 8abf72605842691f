"""What a config costs at most, before it runs: tokens and FLOPs. Pure, but for reading a width from a config.json."""

from typing import NamedTuple

from orchestrator.config import synthetic
from orchestrator.config.activation_functions import ACTIVATIONS, reconstruction_sizes
from orchestrator.config.job import JobConfig, SaeConfig, SubjectConfig
from orchestrator.estimates.subject_files import DEPTH_KEYS, WIDTH_KEYS, model_folder, number_in, read_json


class Cost(NamedTuple):
    """The most a job can use; it stops earlier when it converges."""

    tokens: int
    """Training tokens: the budget. Each is a vector at every layer that is read."""
    d_model: int | None
    """Width at the hook point; None = known only when the subject is loaded."""
    n_latents: int | None
    flops_dense: float | None
    """12·n·D per vector, + 6·n·D per vector once latents can be dead."""
    flops_executed: float | None
    """2·n·D + 8·k·D per vector, + 8·k_aux·D per vector once latents can be dead."""


def estimate(config: JobConfig, d_model: int | None) -> Cost:
    """Return the cost of a config's whole budget at a given width, AuxK active as soon as a latent can be dead.

    Source: numerics 5.
    """
    sae, tokens = config.sae, config.training.max_tokens
    if d_model is None:
        return Cost(tokens, None, sae.n_latents, None, None)
    n_latents, n_layers = sae.latents(d_model), layers_read(config.subject)
    if n_layers is None:
        return Cost(tokens, d_model, n_latents, None, None)
    aux_tokens = max(0, tokens - config.dead_after_tokens(d_model)) if sae.aux_coef > 0 else 0
    dense = tokens * dense_flops(n_latents, d_model) + aux_tokens * dense_aux_flops(n_latents, d_model)
    aux = aux_tokens * executed_aux_flops(sae.aux_latents(d_model), d_model)
    executed = tokens * step_flops(sae, d_model) + aux
    return Cost(tokens, d_model, n_latents, float(n_layers * dense), float(n_layers * executed))


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


def layers_read(subject: SubjectConfig) -> int | None:
    """Return of how many layers a token gives a vector; None where only the model tells how many there are."""
    return depth(subject) if subject.layers == "all" else len(subject.layers or (1,))


def depth(subject: SubjectConfig) -> int | None:
    """Return the number of blocks that a model's config.json on this disk names; or None."""
    return number_in(read_json(model_folder(subject) / "config.json"), DEPTH_KEYS)


def hook_width(subject: SubjectConfig) -> int | None:
    """Return the width at the hook point where it is the model's own; None where only loading the model tells."""
    return known_width(subject) if subject.has_model_width else None


def known_width(subject: SubjectConfig) -> int | None:
    """Return the width of a synthetic subject, or the one that a model's config.json on this disk names; or None."""
    if synthetic.is_synthetic(subject.model):
        return synthetic.parse(subject.model).d_model
    return number_in(read_json(model_folder(subject) / "config.json"), WIDTH_KEYS)
