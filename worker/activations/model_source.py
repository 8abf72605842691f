"""What the jobs of a language model read: its activations over one text."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from orchestrator.config.job import JobConfig, SubjectConfig
from worker.activations import stream as activations
from worker.activations.cached_forward import Store
from worker.data.token_file import TokenFile
from worker.subject.model import Subject


@dataclass
class ModelActivations:
    """A loaded model and a packed text; a place is a hook point."""

    subject: Subject
    tokens: TokenFile
    config: JobConfig
    """Of one of the jobs: what decides the stream is the same in all."""
    store: Store | None = None
    """Where activations are kept, for jobs that ask for it."""
    _views: dict[SubjectConfig, Subject] = field(default_factory=dict)

    def key(self, config: JobConfig) -> Hashable:
        """Return the hook point.

        Raises:
            ConfigError: it is not in the model.
        """
        return self._view(config).hook

    def heldout(self, config: JobConfig) -> Tensor:
        """Return the end of the text, read at a config's hook point."""
        return activations.heldout(self._view(config), self.tokens, config, store=self.store)

    def sample(self, config: JobConfig, n: int) -> Tensor:
        """Return the first n vectors of the training part, in the text's order."""
        return activations.sample(self._view(config), self.tokens, config, n, store=self.store)

    def stream(self, configs: Sequence[JobConfig], *, start_tokens: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield one batch for each config: `activations.shared_stream`."""
        views = [self._view(config) for config in configs]
        return activations.shared_stream(views, self.tokens, configs, start_tokens=start_tokens, store=self.store)

    def flops(self, configs: Sequence[JobConfig]) -> float:
        """Return 2 · parameters up to the deepest hook point · tokens read for one trained vector."""
        deepest = max(self._view(config).parameters_run for config in configs)
        return 2.0 * deepest * self._tokens_per_vector

    def facts(self, config: JobConfig) -> dict[str, Any]:
        """Return what a job's record says of the model and the text."""
        view = self._view(config)
        model = {
            "class": type(view.model).__name__,
            "parameters": sum(p.numel() for p in view.model.parameters()),
            "parameters_run": view.parameters_run,
            "n_layers": view.n_layers,
            "hook": view.hook.name,
            "site": str(view.hook),
            "sha256": view.fingerprint,
        }
        text = {"id": self.tokens.id, "n_tokens": self.tokens.n_tokens}
        return {"subject": model, "tokens": text, "flops_subject_per_token": self.flops([config])}

    @cached_property
    def _tokens_per_vector(self) -> float:
        return activations.captured_per_vector(self.tokens, self.config)

    def _view(self, config: JobConfig) -> Subject:
        if config.subject not in self._views:
            self._views[config.subject] = self.subject.at(config.subject)
        return self._views[config.subject]
