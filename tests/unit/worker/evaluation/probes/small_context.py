"""A context of the shipped subject, a few files of text, and SAEs that are made by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.probes import ProbesOptions
from orchestrator.config.job import DataConfig, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from worker.activations.heldout_split import Contexts
from worker.data.token_file import pack
from worker.evaluation.context import EvaluationContext, Progress
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.probes import measure
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.subject.model import load

CONTEXT = 32


def context_of(folder: Path, progress: Progress = lambda phase, share: None, **probes: Any) -> EvaluationContext:
    """Return the shipped subject with a short text, and a store in a folder."""
    text = folder / "text.txt"
    text.write_text("import os\n\n\ndef join(first, second):\n    return os.path.join(first, second)\n" * 40)
    data = {"source": str(text), "context_length": CONTEXT}
    job = parse({"data": data, "training": {"heldout_tokens": 64, "batch_tokens": 64, "shuffle_tokens": 64}})
    subject = load(job.subject)
    tokens = pack(job.data, subject.tokenizer, folder)
    return EvaluationContext(
        config=config_of(job.data, probes),
        device=torch.device("cpu"),
        store=SharedStore(folder / "store"),
        progress=progress,
        subject=subject,
        text=HeldoutText(tokens, Contexts.of(tokens, job), "text"),
    )


def config_of(data: DataConfig, probes: Mapping[str, Any]) -> EvaluationConfig:
    """Return the config of an evaluation of probes."""
    return EvaluationConfig(
        plan=EvaluationPlan(metrics=("probes",), probes=ProbesOptions(**probes)),
        sae=EvaluatedSaeRef(id=1),
        subject=SubjectConfig(),
        data=data,
        heldout_tokens=64,
    )


def relu_sae(W_enc: Tensor, b_enc: Tensor | None = None) -> InferenceSae:
    """Return an SAE whose pre-activations are x · W_enc + b_enc."""
    d_model, n_latents = W_enc.shape
    facts = SaeFacts(
        selection="relu", d_model=d_model, n_latents=n_latents, normalize="none", subtracts_bias=False, dtype="float32"
    )
    W_dec = torch.nn.functional.normalize(W_enc.T.clone(), dim=1)
    bias = torch.zeros(n_latents) if b_enc is None else b_enc
    return InferenceSae(facts, {"W_enc": W_enc, "b_enc": bias, "W_dec": W_dec, "b_dec": torch.zeros(d_model)})


def measured(context: EvaluationContext, *saes: InferenceSae) -> list[Measured | NotMeasured]:
    """Return what the family finds of SAEs."""
    named = [SubjectSae(number, f"sae {number}", sae) for number, sae in enumerate(saes)]
    return list(measure(named, context, context.config.plan.probes))


def scores(found: Measured | NotMeasured) -> dict[tuple[str, str], Score]:
    """Return the scores of one SAE by metric and variant."""
    assert isinstance(found, Measured), found
    return {(score.metric, score.variant): score for score in found.scores}
