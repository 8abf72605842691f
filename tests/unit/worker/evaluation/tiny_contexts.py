"""Contexts of evaluations over tiny random language models, and SAEs of a known kind for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import DataConfig, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from tests.unit.worker.subject.tiny_models import VOCABULARY, save_model
from worker.activations.heldout_split import Contexts
from worker.data.token_file import TokenFile
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import SubjectSae
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.subject.model import load

LENGTH, N_HELDOUT = 16, 10


def tiny_context(
    folder: Path,
    *,
    family: str = "gpt2",
    n_heldout: int = N_HELDOUT,
    prepend_bos: bool = False,
    progress: Callable[[str, float], None] = lambda _phase, _share: None,
    options: dict[str, Any] | None = None,
    **place: Any,
) -> EvaluationContext:
    """Return the context of a random model over random tokens; all of it lies in a folder, and is found there again."""
    model = folder / family
    if not model.exists():
        save_model(family, model)
    subject = load(SubjectConfig(**{"model": str(model), "layer": 1} | place))
    tokens = _token_file(folder / "text.u16", n_contexts=n_heldout + 30, bos_id=0 if prepend_bos else None)
    ignored = np.zeros(VOCABULARY, dtype=np.bool_)
    ignored[[0, 1]] = True
    contexts = Contexts(tokens, 0, n_heldout, ignored, np.full(30, LENGTH))
    config = EvaluationConfig(
        plan=EvaluationPlan(**(options or {})),
        sae=EvaluatedSaeRef(id=1),
        subject=subject.config,
        data=DataConfig(source="random", context_length=LENGTH, prepend_bos=prepend_bos),
        heldout_tokens=n_heldout * LENGTH,
    )
    text = HeldoutText(tokens, contexts, "random")
    return EvaluationContext(config, torch.device("cpu"), SharedStore(folder / "store"), progress, subject, text)


def _token_file(path: Path, *, n_contexts: int, bos_id: int | None) -> TokenFile:
    n_tokens = n_contexts * (LENGTH - (bos_id is not None))
    np.random.default_rng(0).integers(0, VOCABULARY, n_tokens).astype(np.uint16).tofile(path)
    return TokenFile(path, f"text{bos_id}", n_tokens, VOCABULARY - 1, LENGTH, special_ids=(0, 1), bos_id=bos_id)


def identity_sae(d_model: int) -> InferenceSae:
    """Return an SAE that reconstructs every vector: x = ReLU(x) − ReLU(−x)."""
    eye = torch.eye(d_model)
    tensors = {
        "W_enc": torch.cat([eye, -eye], dim=1),
        "b_enc": torch.zeros(2 * d_model),
        "W_dec": torch.cat([eye, -eye]),
        "b_dec": torch.zeros(d_model),
    }
    return InferenceSae(_facts(d_model, 2 * d_model, selection="topk", k=2 * d_model), tensors)


def constant_sae(value: torch.Tensor) -> InferenceSae:
    """Return an SAE whose latents never fire, so that it gives one vector for all."""
    d_model = len(value)
    tensors = {
        "W_enc": torch.zeros(d_model, 4),
        "b_enc": torch.full((4,), -1.0),
        "W_dec": torch.eye(4, d_model),
        "b_dec": value,
    }
    return InferenceSae(_facts(d_model, 4, selection="relu"), tensors)


def random_sae(
    d_model: int, *, n_latents: int = 24, k: int = 4, normalize: Any = "none", seed: int = 0
) -> InferenceSae:
    """Return a top-k SAE of random directions, encoder and decoder tied."""
    directions = torch.randn(n_latents, d_model, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=1, keepdim=True)
    tensors = {
        "W_enc": directions.T.clone(),
        "b_enc": torch.zeros(n_latents),
        "W_dec": directions,
        "b_dec": torch.zeros(d_model),
    }
    return InferenceSae(replace(_facts(d_model, n_latents, selection="topk", k=k), normalize=normalize), tensors)


def entries(*saes: InferenceSae) -> list[SubjectSae]:
    """Return SAEs as a family takes them: job ids from 1."""
    return [SubjectSae(number, f"sae {number}", sae) for number, sae in enumerate(saes, start=1)]


def _facts(d_model: int, n_latents: int, **more: Any) -> SaeFacts:
    return SaeFacts(
        d_model=d_model, n_latents=n_latents, normalize="none", subtracts_bias=False, dtype="float32", **more
    )
