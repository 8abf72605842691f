"""What the jobs of a trainer read: an activation source; jobs that read the same vectors of it share a hook slot."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.errors import SubjectError
from orchestrator.estimates.memory import SAMPLE_TOKENS
from worker.subject.model import Replace, Subject

Vectors = tuple[Tensor, ...]
"""The vectors of some positions at each hook point of a config: one (n_tokens, d_model) for each, float32, normalised.

They are on the trainer's device, and shared: nobody writes to them.
"""
Map = Callable[[Tensor], Tensor]
"""Maps raw activations (…, d_model), float32, to what is normalised in their place."""


class Lens(Protocol):
    """A map of the residual stream after each block, such as a tuned lens."""

    def into(self, layer: int, x: Tensor) -> Tensor:
        """Map the output of a block, (…, d_model), float32."""

    def flops(self, layer: int) -> int:
        """Return the FLOPs of mapping one vector."""


OpenLens = Callable[[str, Subject], Lens]
"""Returns the lens of a content id, for a loaded model; raises ConfigError where it is of another, or is not there."""


def joined(vectors: Vectors) -> Tensor:
    """Return what an SAE is trained and measured on: the vectors of the first hook point, then those of the next.

    Shapes:
        one (n_tokens, d_model) for each hook point -> (n_hook_points · n_tokens, d_model); of one it is that one.
    """
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


class ActivationSource(Protocol):
    """What the jobs of one trainer read: vectors that follow from a config and a position, and from nothing else."""

    def key(self, config: JobConfig) -> tuple[Hashable, ...]:
        """Return the hook points a config reads.

        Raises:
            ConfigError: this source has no such hook point.
        """

    def open_lens(self, config: JobConfig) -> None:
        """Open the lens that a config reads through, where it does.

        Raises:
            ConfigError: it is of another model, is gone or damaged.
            CheckpointsElsewhere: the folder of artifacts is not to be seen from this machine.
        """

    def heldout(self, config: JobConfig) -> Vectors:
        """Return the fixed set every metric is measured on; it is never trained on.

        Raises:
            ConfigError: there is too little for it.
            SubjectError: a value is not finite.
        """

    def sample(self, config: JobConfig, n: int) -> Vectors:
        """Return the vectors of up to n tokens of the training part, for what is measured once."""

    def stream(self, configs: Sequence[JobConfig], *, start_tokens: int) -> Iterator[tuple[Vectors, ...]]:
        """Yield, without end, one batch for each config: the same positions, in the same order, for all.

        Raises:
            ConfigError: the configs do not read the same positions.
            SubjectError: a value is not finite.
        """

    def run_patched(self, config: JobConfig, input_ids: Tensor, replacements: Sequence[Replace]) -> Tensor:
        """Return the model's logits, with one replacement made at each hook point of a config.

        Shapes:
            input_ids (batch, context) -> (batch, context, vocabulary)

        Raises:
            ConfigError: there is no model to run.
        """

    def flops(self, configs: Sequence[JobConfig]) -> float:
        """Return the FLOPs of reading one trained token at the hook points of some configs, all at once."""

    def facts(self, config: JobConfig) -> dict[str, Any]:
        """Return what a job's record says of what it read; `subject.sha256` and `tokens.id` identify it."""


def refuse_other_source(before: Mapping[str, Any], here: Mapping[str, Any], *, whose: str, otherwise: str) -> None:
    """Refuse another model or another text than an SAE has been trained on: its held-out set would be another, too.

    `before`, `here`: facts of a source, then and now; what either does not say is not compared. `whose` model and text
    those before are, and what there is to do `otherwise` than to bring them back, as sentences.

    Raises:
        SubjectError: they name different models, or texts.
    """
    then, now = (
        {"model": facts.get("subject", {}).get("sha256"), "text": facts.get("tokens", {}).get("id")}
        for facts in (before, here)
    )
    for what, digest in now.items():
        if digest and then[what] not in (None, digest):
            raise SubjectError(
                f"the {what} is not the one {whose} (sha256 {digest[:12]}, then {str(then[what])[:12]})",
                hint=f"Bring the old one back; where it is unchanged, this version reads it otherwise. {otherwise}",
            )


def slot_key(hook_points: tuple[Hashable, ...], config: JobConfig) -> Hashable:
    """Return what tells the hook slot of a config from others."""
    return hook_points, config.sae.lens, config.sae.normalize


@dataclass(frozen=True)
class HookSlot:
    """Some hook points read together, a lens and a normalisation: what jobs must agree on to get the same vectors."""

    hook_points: tuple[Hashable, ...]
    config: JobConfig
    """Of one of the jobs that read here."""
    heldout: Tensor
    """As `joined` gives it."""

    @property
    def n_layers(self) -> int:
        """Return how many hook points are read: of each token so many vectors."""
        return len(self.hook_points)

    @property
    def key(self) -> Hashable:
        """Return what tells this slot from others."""
        return slot_key(self.hook_points, self.config)


@dataclass
class HookSlots:
    """The hook slots of one trainer; jobs of one slot share its held-out set and its sample."""

    source: ActivationSource
    all: list[HookSlot] = field(default_factory=list)
    _sample: tuple[int, Tensor] | None = None

    def find(self, config: JobConfig) -> int:
        """Return the number of a config's slot; the held-out set of a new slot is read now.

        Raises:
            ConfigError, SubjectError: as `ActivationSource.key` and `ActivationSource.heldout`.
        """
        hook_points = self.source.key(config)
        for number, slot in enumerate(self.all):
            if slot.key == slot_key(hook_points, config):
                return number
        self.all.append(HookSlot(hook_points, config, joined(self.source.heldout(config))))
        return len(self.all) - 1

    def configs(self, numbers: Sequence[int]) -> list[JobConfig]:
        """Return, for each slot, the config of one of the jobs that read there."""
        return [self.all[number].config for number in numbers]

    def sample(self, number: int) -> Tensor:
        """Return what a fresh job of a slot starts from, as `joined` gives it; the last is kept until `forget`."""
        if self._sample is None or self._sample[0] != number:
            self._sample = number, joined(self.source.sample(self.all[number].config, SAMPLE_TOKENS))
        return self._sample[1]

    def forget(self) -> None:
        """Free the sample: every job has started."""
        self._sample = None
