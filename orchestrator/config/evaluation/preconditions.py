"""What a metric family needs of an SAE, of its model and of what is asked: one rule for requests and for workers.

A request asks it of what configs and files here tell, a worker again of the model that it has loaded.
"""

from collections.abc import Callable
from typing import NamedTuple

from orchestrator.config.evaluation.evaluation import EvaluationConfig
from orchestrator.config.evaluation.families import Family
from orchestrator.config.model_fit import ModelSizes
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.synthetic import is_synthetic
from orchestrator.errors import ConfigError, SubjectError

_WITHOUT_TEXT: tuple[Family, ...] = ("reconstruction", "structure")
"""Families that measure vectors drawn from a distribution, too."""


class Measurement(NamedTuple):
    """What is measured of one SAE."""

    config: EvaluationConfig
    facts: SaeFacts
    model: ModelSizes


def check_family(family: Family, measured: Measurement) -> None:
    """Refuse a family that has nothing to measure of an SAE, or not as it is asked to; what is not known is let pass.

    Raises:
        SubjectError: it takes a language model, or one of several blocks.
        ConfigError: says what does not fit, and what does.
    """
    model = measured.config.subject.model
    if family not in _WITHOUT_TEXT and is_synthetic(model):
        raise SubjectError(
            f"{model} is no language model: no text can be run through it",
            hint=f"Of such SAEs are measured: {', '.join(_WITHOUT_TEXT)}.",
        )
    if family in _CHECKS:
        _CHECKS[family](measured)


def _layers(measured: Measurement) -> None:
    config, facts, model = measured
    if model.n_blocks == 1:
        raise SubjectError(
            f"{config.subject.model} has one block: there is no distribution over layers",
            hint="Leave the family out, or name a model of several blocks.",
        )
    if len(facts.layers) == 1:
        raise ConfigError(
            f"it reads layer {facts.layers[0]} alone: at which layers latents are active is asked of SAEs of several",
            hint="Train one with subject.layers: all (docs/multi-layer.md), or leave the family out.",
        )
    if facts.lens is not None:
        raise ConfigError(
            "it reads the space of a tuned lens: its latents are not measured by layer yet",
            hint="Measure the SAE of the same sweep without sae.lens.",
        )
    if config.subject.layers != "all" and len(config.subject.layers or ()) < 2:
        raise ConfigError(
            "it is measured at one layer: a distribution over layers needs two or more",
            hint="Measure at all layers: orch evaluate --across-layers.",
        )


def _n2g(measured: Measurement) -> None:
    options, vocabulary = measured.config.plan.n2g, measured.model.vocabulary
    _check_latents("n2g.latents", options.latents, measured.facts.n_latents)
    if options.pad_token is not None and vocabulary is not None and options.pad_token >= vocabulary:
        raise ConfigError(
            f"n2g.pad_token = {options.pad_token}, and the model knows {vocabulary} tokens",
            hint="Leave n2g.pad_token out, or give the id of a token that stands for no text in particular.",
        )


def _explanation(measured: Measurement) -> None:
    options = measured.config.plan.explanation
    if options.endpoint is None and options.command is None:
        raise ConfigError(
            "the family explanation has no explainer",
            hint="Name explanation.endpoint and explanation.model, or explanation.command, in the evaluation's config.",
        )
    _check_latents("explanation.latents", options.latents, measured.facts.n_latents)


def _ablation(measured: Measurement) -> None:
    data, affected = measured.config.data, measured.config.plan.ablation.affected_tokens
    is_masked = data.prepend_bos and data.special_tokens == "mask"
    if data.context_length - is_masked < affected:
        raise ConfigError(
            f"ablation.affected_tokens = {affected}, and contexts have {data.context_length} tokens: no position has "
            "so many from there on",
            hint="Lower ablation.affected_tokens.",
        )


def _check_latents(option: str, asked: int | tuple[int, ...], n_latents: int) -> None:
    if not isinstance(asked, int) and (not asked or max(asked) >= n_latents):
        raise ConfigError(
            f"{option} names {max(asked, default='none')}, and the SAE has latents 0 to {n_latents - 1}",
            hint="Give numbers of latents that it has, or how many are to be drawn.",
        )


_CHECKS: dict[Family, Callable[[Measurement], None]] = {
    "layers": _layers, "n2g": _n2g, "explanation": _explanation, "ablation": _ablation,
}  # fmt: skip
