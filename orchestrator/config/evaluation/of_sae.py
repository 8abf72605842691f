"""From what is asked of every SAE to the evaluation of one: its subject, its place, and the text it is measured on."""

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import JobConfig, Layers, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sae_reading import config_of
from orchestrator.config.synthetic import is_synthetic
from orchestrator.errors import SubjectError


def evaluation_of(
    plan: EvaluationPlan, sae: EvaluatedSaeRef, facts: SaeFacts, trained: JobConfig | None
) -> EvaluationConfig:
    """Return the evaluation of one SAE; `trained`: the config of the job that trained it, None of an imported one.

    Raises:
        SubjectError: it cannot be measured: a transcoder, or its model or place is not known.
        ConfigError: what is asked for does not fit together.
    """
    if facts.is_transcoder:
        raise SubjectError("it is a transcoder, and those are not measured yet")
    read = config_of(facts, {"data": plan.source, "tokens": plan.tokens}, trained, of_several_layers=True)
    subject = read.subject if plan.at_layers is None else _at_layers(read.subject, plan.at_layers)
    return EvaluationConfig(
        plan=plan, sae=sae, subject=subject, data=read.data, heldout_tokens=read.training.heldout_tokens
    )


def _at_layers(subject: SubjectConfig, layers: Layers) -> SubjectConfig:
    """Return the same site of a model, at other layers."""
    if is_synthetic(subject.model):
        raise SubjectError(f"{subject.model} has no layers")
    if subject.hook is not None:
        raise SubjectError(f"it reads the module {subject.hook}: at_layers is for SAEs of a site")
    if layers != "all" and len(layers) == 1:
        return subject.model_copy(update={"layer": layers[0], "layers": None})
    return subject.model_copy(update={"layer": None, "layers": layers})
