"""Where the jobs of a trainer read: a hook point and a normalisation, with what is measured there once for all."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from orchestrator.config import JobConfig
from worker import activations
from worker.store import Store
from worker.subject import Subject
from worker.tokens import TokenFile

SAMPLE_TOKENS = 16_384
"""Normalised activations that μ, v and the geometric median are measured on."""


@dataclass(frozen=True)
class Place:
    """A hook point of the model, and a normalisation."""

    subject: Subject
    config: JobConfig
    """Of one of the jobs that read here."""
    heldout: Tensor


@dataclass
class Places:
    """The places the jobs of one trainer read at; jobs of one place share its held-out set and its sample."""

    subject: Subject
    tokens: TokenFile
    config: JobConfig
    """Of one of the jobs: what decides the stream is the same in all."""
    store: Store | None = None
    """Where activations are kept, for jobs that ask for it."""
    all: list[Place] = field(default_factory=list)
    _sample: tuple[int, Tensor] | None = None

    @cached_property
    def tokens_per_vector(self) -> float:
        """Return the tokens the subject reads for one trained vector."""
        return activations.captured_per_vector(self.tokens, self.config)

    def find(self, config: JobConfig) -> int:
        """Return the number of the place a config reads at; what is measured there is measured when it is new.

        Raises:
            ConfigError: the hook point is not in the model, or the text is too short.
            SubjectError: an activation of the held-out set is not finite.
        """
        view = self.subject.at(config.subject)
        for number, place in enumerate(self.all):
            if (place.subject.hook, place.config.sae.normalize) == (view.hook, config.sae.normalize):
                return number
        self.all.append(Place(view, config, activations.heldout(view, self.tokens, config, store=self.store)))
        return len(self.all) - 1

    def sample(self, number: int) -> Tensor:
        """Return the sample a fresh job begins with; the last one is kept, and `forget` lets it go."""
        if self._sample is None or self._sample[0] != number:
            place = self.all[number]
            found = activations.sample(place.subject, self.tokens, place.config, SAMPLE_TOKENS, store=self.store)
            self._sample = number, found
        return self._sample[1]

    def forget(self) -> None:
        """Drop the sample: every job has begun."""
        self._sample = None
