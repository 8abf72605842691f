"""What the metric families measure with: a model at one place, a text, and what was computed of both before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.evaluation.evaluation import EvaluationConfig
from orchestrator.errors import SubjectError
from worker.evaluation.heldout_text import HeldoutText, Text
from worker.evaluation.restart import Restart
from worker.evaluation.seeds import seed_of
from worker.evaluation.shared_store import SharedStore
from worker.lens.tuned_lens import TunedLens
from worker.subject.model import Subject, read

Progress = Callable[[str, float], None]
"""Takes what is being done and which share of it is done."""
CLEAN_PASS_BYTES = 4 << 30
"""Of 16,384 tokens the probabilities of a vocabulary of 50,257 fit, or, where the head is linear, of 1.4 million tokens
the rows of 768 that stand for them."""


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
    """The most that predictions of the clean model may take on disk."""
    lens: TunedLens | None = None
    """In whose space the SAEs encode and decode: the activations that are given here are mapped to it."""
    lens_sha256: str = ""
    """Its content id."""

    @cached_property
    def raw(self) -> "EvaluationContext":
        """The same place without the lens: the activations that the model computes."""
        return self if self.lens is None else replace(self, lens=None, lens_sha256="")

    @cached_property
    def restart(self) -> Restart:
        """How the model is restarted at the place; what a model has to be asked for that is kept in the store."""
        subject, _ = self.model()
        versions = {"torch": torch.__version__, "transformers": version("transformers")}
        of = self.of("restart", version=1, lens=None, **versions)
        return Restart.known(subject, self.store.get(of, lambda: Restart.of(subject).facts))

    def into(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map raw activations, on the device, to what the SAEs read; without a lens these are the same."""
        return x if self.lens is None else self.lens.into(self._lens_layer, x)

    def back(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map what the SAEs give, on the device, to raw activations."""
        return y if self.lens is None else self.lens.back(self._lens_layer, y)

    def back_direction(self, v: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map a direction in what the SAEs give to what it adds to raw activations."""
        return v if self.lens is None else self.lens.back_direction(self._lens_layer, v)

    @property
    def lens_condition(self) -> float | None:
        """Return the condition number of the lens's map here: by how much rounding may grow on the way back."""
        return None if self.lens is None else self.lens.condition(self._lens_layer)

    @property
    def _lens_layer(self) -> int:
        layer = self.model()[0].hook.layer
        assert layer is not None, "a lens is of the outputs of blocks"
        return layer

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
        own |= {"lens": self.lens_sha256} if self.lens is not None else {}
        data = self.config.data.model_dump(mode="json")
        return own | {"text": text.id, "data": data, "heldout_tokens": self.config.heldout_tokens} | more

    def activations(self, text: Text) -> Float[Tensor, "n_contexts context d_model"]:
        """Return what the SAEs read of some contexts, float32, on the device; captured now."""
        subject, _ = self.model()
        size = max(1, 2048 // text.ids.shape[1])
        parts = [read([subject], ids.to(self.device))[0].float() for ids in torch.split(text.ids, size)]
        return torch.cat([self.into(part.clone()) for part in parts])

    @cached_property
    def heldout_activations(self) -> Float[Tensor, "n_contexts context d_model"]:
        """What the SAEs read of the held-out text, float32, on the CPU; raw it is captured once, kept in the store."""
        _, text = self.model()
        if self.lens is not None:
            parts = torch.split(self.raw.heldout_activations, max(1, 2048 // text.heldout.ids.shape[1]))
            return torch.cat([self.into(part.to(self.device)).cpu() for part in parts])
        return self.store.get(self.of("activations"), lambda: {"values": self.activations(text.heldout)})["values"]

    @cached_property
    def vectors(self) -> Float[Tensor, "n_tokens d_model"]:
        """What the SAEs read at the positions that count, in the text's order, on the device."""
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
