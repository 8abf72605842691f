"""A stand-in subject whose activations say which tokens came last, a text for it, and SAEs that read patterns of them.

The module has what `Subject` needs of a transformers model. The activations at a position are one-hot vectors of its
token and of the two before it, and a 1 at the first position: so an SAE with hand-set weights is active on a pattern.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import DataConfig, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts, Selection
from orchestrator.config.validation import parse
from tests.unit.worker.subject.tiny_models import make_tokenizer
from worker.activations.heldout_split import Contexts
from worker.data.token_file import TokenFile
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.subject.hook_sites import HookPoint
from worker.subject.model import Subject

VOCABULARY, BACK, CONTEXT = 64, 3, 16
WIDTH = VOCABULARY * BACK + 1
FIRST = WIDTH - 1
"""Dimension that is 1 at the first position."""


def token(number: int, back: int = 0) -> int:
    """Return the dimension that is 1 where a token is so many positions back."""
    return back * VOCABULARY + number


class _Words(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(input_ids, VOCABULARY).float()
        before = [nn.functional.pad(one_hot, (0, 0, back, 0))[:, : input_ids.shape[1]] for back in range(BACK)]
        first = (torch.arange(input_ids.shape[1]) == 0).float().expand(input_ids.shape)
        return torch.cat([*before, first[..., None]], dim=-1)


class _Config:
    max_position_embeddings = CONTEXT

    def get_text_config(self) -> "_Config":
        return self


class StandIn(nn.Module):
    """Logits of the next token are its own token's: enough for a cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.config = _Config()
        self.embeddings = nn.Embedding(VOCABULARY, 1)
        self.words = _Words()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids: Tensor, *, use_cache: bool = False) -> Any:
        class Output:
            logits = self.words(input_ids)[..., :VOCABULARY]

        return Output


def stand_in() -> Subject:
    return Subject(
        config=SubjectConfig(), model=StandIn().eval().requires_grad_(False), tokenizer=make_tokenizer(),
        hook=HookPoint("words"), d_model=WIDTH, dtype=torch.float32, n_layers=1, parameters_run=1,
        fingerprint="0" * 64, device=torch.device("cpu"),
    )  # fmt: skip


def random_tokens(file: Path, *, n_contexts: int, context: int = CONTEXT, bos: int | None = None) -> TokenFile:
    """Return a text of tokens drawn at random, the two special ones left out."""
    n_tokens = n_contexts * (context - (bos is not None))
    ids = np.random.default_rng(0).integers(2, VOCABULARY, n_tokens).astype(np.uint16)
    file.write_bytes(ids.tobytes())
    return TokenFile(
        path=file, id=f"text of {n_tokens}", n_tokens=n_tokens, largest_id=int(ids.max()), context_length=context,
        special_ids=(0, 1), bos_id=bos,
    )  # fmt: skip


def context_of(
    subject: Subject,
    tokens: TokenFile,
    folder: Path,
    *,
    plan: EvaluationPlan | None = None,
    heldout_tokens: int = 2048,
    progress: Callable[[str, float], None] = lambda phase, share: None,
) -> EvaluationContext:
    """Return what a metric family measures with."""
    data = DataConfig(context_length=tokens.context_length, prepend_bos=tokens.bos_id is not None)
    training = {"heldout_tokens": heldout_tokens, "batch_tokens": 64, "shuffle_tokens": 64}
    job = parse({"training": training, "data": data.model_dump()})
    config = EvaluationConfig(
        plan=plan or EvaluationPlan(),
        sae=EvaluatedSaeRef(id=1),
        subject=subject.config,
        data=data,
        heldout_tokens=heldout_tokens,
    )
    return EvaluationContext(
        config=config,
        device=torch.device("cpu"),
        store=SharedStore(folder),
        progress=progress,
        subject=subject,
        text=HeldoutText(tokens, Contexts.of(tokens, job), "random"),
    )


def planted_sae(patterns: Sequence[Sequence[int]], selection: Selection = "relu") -> InferenceSae:
    """Return an SAE whose latent i is active, at 1, where all of some dimensions are 1."""
    encoder = torch.zeros(WIDTH, len(patterns))
    for latent, dimensions in enumerate(patterns):
        encoder[list(dimensions), latent] = 1.0
    counts = torch.tensor([float(len(dimensions)) for dimensions in patterns])
    facts = SaeFacts(
        selection=selection, d_model=WIDTH, n_latents=len(patterns), normalize="none", subtracts_bias=False,
        dtype="float32", k=len(patterns) if selection == "topk" else None,
    )  # fmt: skip
    tensors = {
        "W_enc": encoder,
        "b_enc": 1 - counts,
        "W_dec": nn.functional.normalize(encoder.T),
        "b_dec": torch.zeros(WIDTH),
    }
    if selection == "jumprelu":
        tensors["threshold"] = torch.full((len(patterns),), 0.5)
    return InferenceSae(facts, tensors)
