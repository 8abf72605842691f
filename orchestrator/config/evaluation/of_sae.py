"""From what is asked of every SAE to the evaluation of one: its subject, its place, and the text it is measured on."""

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import JobConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sae_reading import config_of
from orchestrator.errors import SubjectError


def evaluation_of(
    plan: EvaluationPlan, sae: EvaluatedSaeRef, facts: SaeFacts, trained: JobConfig | None
) -> EvaluationConfig:
    """Return the evaluation of one SAE; `trained`: the config of the job that trained it, None of an imported one.

    Raises:
        SubjectError: it cannot be measured: a transcoder, of several layers, or its model or place is not known.
        ConfigError: what is asked for does not fit together.
    """
    if facts.is_transcoder:
        raise SubjectError("it is a transcoder, and those are not measured yet")
    read = config_of(facts, {"data": plan.source, "tokens": plan.tokens}, trained)
    return EvaluationConfig(
        plan=plan, sae=sae, subject=read.subject, data=read.data, heldout_tokens=read.training.heldout_tokens
    )
