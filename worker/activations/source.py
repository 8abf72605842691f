"""Where the jobs of a trainer read: a place and a normalisation, with what is measured there once for all."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.estimates.memory import SAMPLE_TOKENS


class ActivationSource(Protocol):
    """What the jobs of one trainer read: vectors that a config and a position decide, and nothing else.

    All tensors are (n_tokens, d_model), float32, normalised, on the trainer's device; nobody writes to them.
    """

    def key(self, config: JobConfig) -> Hashable:
        """Return what tells the place a config reads at from others, its normalisation apart.

        Raises:
            ConfigError: there is no such place here.
        """

    def heldout(self, config: JobConfig) -> Tensor:
        """Return the fixed set every metric is measured on; it is never trained on.

        Raises:
            ConfigError: there is too little for it.
            SubjectError: a value is not finite.
        """

    def sample(self, config: JobConfig, n: int) -> Tensor:
        """Return up to n vectors of the training part, for what is measured once."""

    def stream(self, configs: Sequence[JobConfig], *, start_tokens: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield, without end, one batch for each config: the same positions, in the same order, for all.

        Raises:
            ConfigError: the configs do not read the same positions.
            SubjectError: a value is not finite.
        """

    def flops(self, configs: Sequence[JobConfig]) -> float:
        """Return the FLOPs of reading one trained vector at the places of some configs, all at once."""

    def facts(self, config: JobConfig) -> dict[str, Any]:
        """Return what a job's record says of what it read; `subject.sha256` and `tokens.id` tell it from others."""


@dataclass(frozen=True)
class HookSlot:
    """A place in the material, and a normalisation."""

    key: Hashable
    config: JobConfig
    """Of one of the jobs that read here."""
    heldout: Tensor


@dataclass
class HookSlots:
    """The places the jobs of one trainer read at; jobs of one place share its held-out set and its sample."""

    material: ActivationSource
    all: list[HookSlot] = field(default_factory=list)
    _sample: tuple[int, Tensor] | None = None

    def find(self, config: JobConfig) -> int:
        """Return the number of the place a config reads at; what is measured there is measured when it is new.

        Raises:
            ConfigError, SubjectError: as `ActivationSource.key` and `ActivationSource.heldout`.
        """
        key = self.material.key(config), config.sae.normalize
        for number, place in enumerate(self.all):
            if place.key == key:
                return number
        self.all.append(HookSlot(key, config, self.material.heldout(config)))
        return len(self.all) - 1

    def configs(self, numbers: Sequence[int]) -> list[JobConfig]:
        """Return, for each place, the config of one of the jobs that read there."""
        return [self.all[number].config for number in numbers]

    def sample(self, number: int) -> Tensor:
        """Return the sample a fresh job begins with; the last one is kept, and `forget` lets it go."""
        if self._sample is None or self._sample[0] != number:
            self._sample = number, self.material.sample(self.all[number].config, SAMPLE_TOKENS)
        return self._sample[1]

    def forget(self) -> None:
        """Drop the sample: every job has begun."""
        self._sample = None
