"""The activation source of jobs that read a language model: its activations over one text."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from orchestrator.config.job import JobConfig, SubjectConfig
from worker.activations import stream
from worker.activations.cached_forward import CacheStore
from worker.activations.heldout_split import Contexts
from worker.activations.shuffle import Captured
from worker.activations.source import Lens, Map, OpenLens, Vectors
from worker.data.token_file import TokenFile
from worker.subject.hook_points import single_places
from worker.subject.hook_sites import HookPoint
from worker.subject.model import Replace, Subject, check_widths, run_patched


@dataclass
class ModelActivations:
    """A loaded model and a packed text."""

    subject: Subject
    tokens: TokenFile
    config: JobConfig
    """Of one of the jobs: what decides the stream is the same in all."""
    store: CacheStore | None = None
    """Where activations are kept, for jobs that ask for it."""
    opener: OpenLens | None = None
    """What opens the lens of a config, for jobs that have one."""
    _views: dict[SubjectConfig, tuple[Subject, ...]] = field(default_factory=dict)
    _lenses: dict[str, Lens] = field(default_factory=dict)
    _captured: tuple[tuple[HookPoint, ...], Captured] = ((), {})
    """What was captured for the last sample, and at which hook points: a stream of them begins with it."""

    def key(self, config: JobConfig) -> tuple[Hashable, ...]:
        """Return the hook points a config reads.

        Raises:
            ConfigError: one is not in the model.
        """
        return tuple(view.hook for view in self._views_of(config))

    def open_lens(self, config: JobConfig) -> None:
        """Open the lens that a config reads through, where it does; each is read once.

        Raises:
            ConfigError, CheckpointsElsewhere: it cannot be.
        """
        sha256 = config.sae.lens
        if sha256 is not None and sha256 not in self._lenses:
            assert self.opener is not None, "a job with a lens comes with the folder of the lenses"
            self._lenses[sha256] = self.opener(sha256, self.subject)

    def heldout(self, config: JobConfig) -> Vectors:
        """Return the end of the text, read at a config's hook points."""
        return stream.shared_heldout(self._views_of(config), self.tokens, config, store=self.store, lenses=self._map)

    def sample(self, config: JobConfig, n: int) -> Vectors:
        """Return the vectors of the first n tokens of the stream, in its order."""
        views = self._views_of(config)
        captured: Captured | None = None
        if self.subject.device.type == "cpu":  # a GPU captures the stream on a CUDA stream of its own
            captured = {}
            self._captured = _hooks(views), captured
        return stream.shared_sample(
            views, self.tokens, config, n, store=self.store, lenses=self._map, captured=captured
        )

    def stream(self, configs: Sequence[JobConfig], *, start_tokens: int) -> Iterator[tuple[Vectors, ...]]:
        """Yield one batch for each config, all from one forward pass: `stream.shared_stream`."""
        views = [self._views_of(config) for config in configs]
        bounds = [0, *accumulate(map(len, views))]
        flat = [(view, config) for config, several in zip(configs, views, strict=True) for view in several]
        hooks, captured = self._captured
        self._captured = (), {}
        if start_tokens or hooks != _hooks([view for view, _ in flat]):
            captured = {}
        batches = stream.shared_stream(
            [view for view, _ in flat],
            self.tokens,
            [config for _, config in flat],
            start_tokens=start_tokens,
            store=self.store,
            lenses=self._map,
            captured=captured,
        )
        for batch in batches:
            yield tuple(batch[first:end] for first, end in pairwise(bounds))

    def run_patched(self, config: JobConfig, input_ids: Tensor, replacements: Sequence[Replace]) -> Tensor:
        """Return the model's logits, with one replacement made at each hook point of a config."""
        return run_patched(self._views_of(config), input_ids, replacements)

    def flops(self, configs: Sequence[JobConfig]) -> float:
        """Return 2 · parameters up to the deepest hook point · tokens read for one trained token, and its lenses'."""
        views = [(config, view) for config in configs for view in self._views_of(config)]
        deepest = max(view.parameters_run for _, view in views)
        mapped = {(config.sae.lens, view.hook.layer) for config, view in views if config.sae.lens}
        lenses = sum(self._lenses[lens].flops(layer) for lens, layer in mapped if layer is not None)
        return 2.0 * deepest * self._contexts.captured_per_vector + lenses

    def facts(self, config: JobConfig) -> dict[str, Any]:
        """Return what a job's record says of the model and the text."""
        views = self._views_of(config)
        view = max(views, key=lambda one: one.parameters_run)
        model = {
            "class": type(view.model).__name__,
            "parameters": sum(p.numel() for p in view.model.parameters()),
            "parameters_run": view.parameters_run,
            "n_layers": view.n_layers,
            "hook": view.hook.name,
            "site": str(view.hook),
            "sha256": view.fingerprint,
        }
        if config.subject.layers is not None:
            layers = [one.hook.layer for one in views]
            model |= {"layers": layers, "site": f"{config.subject.site} of layers {', '.join(map(str, layers))}"}
        trainable = self._contexts.n_vectors
        text = {"id": self.tokens.id, "n_tokens": self.tokens.n_tokens, "trainable": trainable}
        text |= {"unknown": self.tokens.unknown} if self.tokens.unknown else {}
        settled = {"subject_dtype": self.subject.precision} if config.subject.dtype == "auto" else {}
        return {"subject": model, "tokens": text, "flops_subject_per_token": self.flops([config]), **settled}

    @cached_property
    def _contexts(self) -> Contexts:
        return Contexts.of(self.tokens, self.config)

    def _map(self, config: JobConfig, view: Subject) -> Map | None:
        """Return what maps the activations of a view for a config, where it has a lens."""
        if config.sae.lens is None:
            return None
        assert view.hook.layer is not None, "a config with a lens reads the output of blocks"
        self.open_lens(config)
        return partial(self._lenses[config.sae.lens].into, view.hook.layer)

    def _views_of(self, config: JobConfig) -> tuple[Subject, ...]:
        """Return a view of the model for each hook point of a config, in the order of its layers."""
        if config.subject not in self._views:
            views = tuple(map(self.subject.at, single_places(self.subject.model, config.subject)))
            check_widths(views)
            self._views[config.subject] = views
        return self._views[config.subject]


def _hooks(views: Sequence[Subject]) -> tuple[HookPoint, ...]:
    """Return the hook points that a forward batch of some views reads, in its order."""
    return tuple(dict.fromkeys(view.hook for view in views))
