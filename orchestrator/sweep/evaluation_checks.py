"""Refuse, before a sweep is queued, an evaluation that no SAE of one of its configs could have."""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationPlan
from orchestrator.config.evaluation.of_sae import evaluation_of
from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.config.job_sae_facts import job_sae_facts
from orchestrator.config.model_fit import ModelSizes
from orchestrator.errors import ConfigError, SubjectError
from orchestrator.estimates.flops import hook_width
from orchestrator.estimates.subject_files import model_sizes
from orchestrator.sweep.sweep import Sweep

_WIDE = 1 << 31
"""Dimensions, where no file tells how many: no number of a latent is above those of so wide an SAE."""


def check_evaluation(sweep: Sweep) -> None:
    """Check what is to be measured of every SAE that a sweep is going to train, as far as files here tell.

    Raises:
        ConfigError: an SAE of one of its configs cannot be measured so; says why.
        SubjectError: its model cannot be.
    """
    if sweep.evaluation is None:
        return
    sizes_of = cache(model_sizes)
    for config in {_measured_key(config): config for config in sweep.configs}.values():
        _check(config, sweep.evaluation, sizes_of)


def _check(config: JobConfig, plan: EvaluationPlan, sizes_of: Callable[[SubjectConfig], ModelSizes]) -> None:
    n_blocks = sizes_of(config.subject).n_blocks
    found: dict[str, Any] = {} if n_blocks is None else {"n_layers": n_blocks}
    if n_blocks is not None and config.subject.layers is not None:
        found["layers"] = [place.layer for place in config.subject.places(n_blocks)]
    width = hook_width(config.subject) or _WIDE
    facts = job_sae_facts(config.model_dump(mode="json"), {"subject": found}, d_model=width)
    try:
        evaluation_of(plan, EvaluatedSaeRef(id=1), facts, config, sizes_of)
    except (ConfigError, SubjectError) as error:
        error.message = f"evaluate: an SAE of this sweep cannot be measured: {error.message}"
        raise


def _measured_key(config: JobConfig) -> Hashable:
    """Return what decides whether an SAE can be measured: configs of one key are checked once."""
    sae = config.sae
    return config.subject, config.data, config.training.heldout_tokens, sae.lens, sae.n_latents, sae.expansion
