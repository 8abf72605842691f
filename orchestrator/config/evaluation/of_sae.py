"""From what is asked of every SAE to the evaluation of one: its subject, its place, and the text it is measured on."""

from collections.abc import Callable

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.preconditions import Measurement, check_family
from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.config.model_fit import ModelSizes, check_layer
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sae_reading import config_of
from orchestrator.config.synthetic import is_synthetic
from orchestrator.config.value_types import Layers
from orchestrator.errors import ConfigError, SubjectError


def _not_known(subject: SubjectConfig) -> ModelSizes:
    return ModelSizes()


def evaluation_of(
    plan: EvaluationPlan, sae: EvaluatedSaeRef, facts: SaeFacts, trained: JobConfig | None,
    sizes_of: Callable[[SubjectConfig], ModelSizes] = _not_known,
) -> EvaluationConfig:  # fmt: skip
    """Return the evaluation of one SAE; `trained`: the config of the job that trained it, None of an imported one.

    `sizes_of`: says what files here tell of its subject.

    Raises:
        SubjectError: it cannot be measured: a transcoder, or its model or place is not known; or a family cannot be.
        ConfigError: what is asked for does not fit together, or not this SAE; names the metric family.
    """
    if facts.is_transcoder:
        raise SubjectError("it is a transcoder, and those are not measured yet")
    read = config_of(facts, {"data": plan.source, "tokens": plan.tokens}, trained, of_several_layers=True)
    subject = read.subject if plan.at_layers is None else _at_layers(read.subject, plan.at_layers)
    model = sizes_of(read.subject)
    if plan.at_layers not in {None, "all"} and model.n_blocks is not None:
        check_layer(subject, model.n_blocks, asked="at_layers")
    config = EvaluationConfig(
        plan=plan, sae=sae, subject=subject, data=read.data, heldout_tokens=read.training.heldout_tokens
    )
    for family in plan.metrics:
        try:
            check_family(family, Measurement(config, facts, model))
        except (ConfigError, SubjectError) as error:
            error.message = f"{family}: {error.message}"
            raise
    return config


def _at_layers(subject: SubjectConfig, layers: Layers) -> SubjectConfig:
    """Return the same site of a model, at other layers."""
    if is_synthetic(subject.model):
        raise SubjectError(f"{subject.model} has no layers")
    if subject.hook is not None:
        raise SubjectError(f"it reads the module {subject.hook}: at_layers is for SAEs of a site")
    if layers != "all" and len(layers) == 1:
        return subject.model_copy(update={"layer": layers[0], "layers": None})
    return subject.model_copy(update={"layer": None, "layers": layers})
