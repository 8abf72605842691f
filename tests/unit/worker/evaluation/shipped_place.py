"""One place of the language model that ships here, with some text: what a metric family measures with."""

from pathlib import Path

import torch

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.sae_facts import InputNormalization, SaeFacts, Selection
from orchestrator.config.validation import parse
from worker.activations.heldout_split import Contexts
from worker.data.token_file import pack
from worker.evaluation.context import EvaluationContext, Progress
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import SubjectSae
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.subject.model import load

D_MODEL = 128


def place(folder: Path, progress: Progress = lambda phase, share: None) -> EvaluationContext:
    """Return 16 contexts of 128 tokens of the standard library's source, behind block 3."""
    job = parse({
        "subject": {"layer": 3},
        "data": {"source": "python:stdlib", "max_tokens": 40_000},
        "training": {"heldout_tokens": 2048, "batch_tokens": 256, "max_tokens": 20_000},
    })  # fmt: skip
    subject = load(job.subject)
    tokens = pack(job.data, subject.tokenizer, folder / "tokens")
    config = EvaluationConfig(
        plan=EvaluationPlan(), sae=EvaluatedSaeRef(id=1), subject=job.subject, data=job.data, heldout_tokens=2048
    )
    text = HeldoutText(tokens, Contexts.of(tokens, job), "python:stdlib")
    store = SharedStore(folder / "store")
    return EvaluationContext(config, torch.device("cpu"), store, progress, subject, text)


def sae(
    selection: Selection, job_id: int, *, normalize: InputNormalization = "unit", n_latents: int = 96, seed: int = 0
) -> SubjectSae:
    """Return an SAE of random directions, whose encoder is its decoder."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n_latents, D_MODEL, generator=generator), dim=1)
    facts = SaeFacts(
        selection=selection, d_model=D_MODEL, n_latents=n_latents, normalize=normalize, subtracts_bias=True,
        dtype="float32", k=6,
    )  # fmt: skip
    tensors = {
        "W_enc": rows.T.clone(),
        "W_dec": rows,
        "b_enc": torch.full((n_latents,), -0.05),
        "b_dec": torch.zeros(D_MODEL),
    }
    threshold = {"batchtopk": torch.tensor(0.1), "jumprelu": torch.full((n_latents,), 0.1)}.get(selection)
    more = {} if threshold is None else {"threshold": threshold}
    return SubjectSae(job_id, f"job {job_id}", InferenceSae(facts, tensors | more))
