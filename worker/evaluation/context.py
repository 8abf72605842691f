"""What the metric families measure with: a model at one place, a text, and what was computed of both before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.evaluation.evaluation import EvaluationConfig
from orchestrator.errors import SubjectError
from worker.evaluation.heldout_text import HeldoutText, Text
from worker.evaluation.seeds import seed_of
from worker.evaluation.shared_store import SharedStore
from worker.subject.model import Subject, read

Progress = Callable[[str, float], None]
"""Takes what is being done and which share of it is done."""
CLEAN_PASS_BYTES = 4 << 30
"""Of the text's length · vocabulary · 4 bytes: 16,384 tokens of a vocabulary of 50,257 fit."""


@dataclass(frozen=True)
class EvaluationContext:
    """One place of one model, and a text. Of a synthetic distribution there is neither: only `vectors`."""

    config: EvaluationConfig
    """Of one of the SAEs: subject, text, seed and place are those of all."""
    device: torch.device
    store: SharedStore
    progress: Progress
    subject: Subject | None = None
    text: HeldoutText | None = None
    drawn: Float[Tensor, "n_tokens d_model"] | None = None
    """Vectors of a synthetic distribution."""
    clean_pass_bytes: int = CLEAN_PASS_BYTES
    """The most that next-token probabilities of the clean model may take on disk."""

    def model(self) -> tuple[Subject, HeldoutText]:
        """Return the language model and the text.

        Raises:
            SubjectError: the SAEs were trained on a synthetic distribution, of which there is no model.
        """
        if self.subject is None or self.text is None:
            raise SubjectError(f"{self.config.subject.model} is no language model: no text can be run through it")
        return self.subject, self.text

    def of(self, what: str, **more: Any) -> Mapping[str, Any]:
        """Return what an entry of the store is of: its name, the model, the place and the text, and what else decides.

        For what does not depend on the place, give `hook=None`.
        """
        subject, text = self.model()
        own = {"what": what, "model": subject.fingerprint, "dtype": str(subject.dtype), "hook": str(subject.hook)}
        data = self.config.data.model_dump(mode="json")
        return own | {"text": text.id, "data": data, "heldout_tokens": self.config.heldout_tokens} | more

    def activations(self, text: Text) -> Float[Tensor, "n_contexts context d_model"]:
        """Return the raw activations of some contexts, float32, on the device; captured now."""
        subject, _ = self.model()
        size = max(1, 2048 // text.ids.shape[1])
        parts = [read([subject], ids.to(self.device))[0].float() for ids in torch.split(text.ids, size)]
        return torch.cat([part.clone() for part in parts])

    @cached_property
    def heldout_activations(self) -> Float[Tensor, "n_contexts context d_model"]:
        """The raw activations of the held-out text, float32, on the CPU: captured once, kept in the store."""
        _, text = self.model()
        return self.store.get(self.of("activations"), lambda: {"values": self.activations(text.heldout)})["values"]

    @cached_property
    def vectors(self) -> Float[Tensor, "n_tokens d_model"]:
        """The raw activations of the positions that count, in the text's order, on the device."""
        if self.drawn is not None:
            return self.drawn
        _, text = self.model()
        return self.heldout_activations[text.heldout.is_measured].to(self.device)

    @property
    def n_tokens(self) -> int:
        """Return the number of positions that count."""
        return len(self.vectors) if self.text is None else int(self.text.heldout.is_measured.sum())

    def generator(self, name: str) -> torch.Generator:
        """Return a source of chance of the config's seed and a name: the same for every SAE and every attempt."""
        return torch.Generator().manual_seed(self.seed(name))

    def seed(self, name: str) -> int:
        """Return a seed of the config's seed and a name, for sources of chance that are not torch's."""
        return seed_of(name, self.config.plan.seed)
