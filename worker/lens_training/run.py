"""Train the lens of one order, from its newest checkpoint to its end, or until told to yield."""

import math
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.lens.facts import LensFacts
from orchestrator.config.lens.training import LensConfig
from orchestrator.curves.lens_curve import LensResult, lens_outcome, mean_kl
from orchestrator.curves.point import evaluation_grid
from orchestrator.errors import SubjectError
from orchestrator.job_states import Outcome
from orchestrator.versions import git_commit, versions
from worker import checkpoint_search
from worker.accelerator import choose
from worker.activations.heldout_split import Contexts
from worker.activations.source import refuse_other_source
from worker.channel import SupervisorChannel
from worker.data import token_file
from worker.evaluation.heldout_text import HeldoutText
from worker.lens_order import LensOrder
from worker.lens_training import checkpoint
from worker.lens_training.divergence import Divergence
from worker.lens_training.state import LensState
from worker.protocol import Exit, Started
from worker.subject.model import Subject, load_at_first


class LensRun:
    """One lens job of this process."""

    def __init__(self, order: LensOrder, channel: SupervisorChannel) -> None:
        """Load the model, and pack the text.

        Raises:
            ConfigError, SubjectError, MachineError: the model or the text cannot be read here.
        """
        torch.set_num_threads(order.threads)
        self._order, self._channel, self._config = order, channel, order.config
        self._device = torch.device(choose(order.device))
        channel.alive(0, phase="starting")
        self._subject = load_at_first([order.config.subject], self._device)
        self._text = self._packed(self._subject)
        self._heldout = self._text.heldout
        self._divergence = Divergence(self._subject)
        self._artifacts = Path(order.artifacts)

    def run(self) -> Exit:
        """Train."""
        state = self._start()
        self._channel.training_from({self._order.job_id: state.tokens_seen})
        grid, saved_at = _grid(self._config), time.monotonic()
        while (outcome := self._outcome(state)) is None:
            self._step(state, grid)
            if self._channel.must_yield:
                self._save(state)
                return Exit.YIELDED
            if time.monotonic() - saved_at >= self._order.checkpoint_seconds:
                self._save(state)
                saved_at = time.monotonic()
        self._end(state, outcome)
        return Exit.DONE

    def _packed(self, subject: Subject) -> HeldoutText:
        def packing(_: int) -> None:
            self._channel.alive(0, phase="packing")

        tokens = token_file.pack(self._config.data, subject.tokenizer, Path(self._order.tokens_folder), packing)
        return HeldoutText(tokens, Contexts.of(tokens, self._config.reading), self._config.data.source)

    def _start(self) -> LensState:
        """Return the state to go on from, and report it."""
        source = self._source()
        folder = self._artifacts / str(self._order.job_id)
        found = checkpoint_search.newest_readable(
            [ref.uri for ref in self._order.resume], folder=folder,
            load=lambda uri: checkpoint.load(uri, self._config, device=self._device),
        )  # fmt: skip
        if found is None:
            sizes = {"n_layers": self._divergence.n_layers, "d_model": self._divergence.d_model}
            state = LensState(self._config, **sizes, device=self._device)
            state.logit_lens_kls = self._measured(lambda _, x: x, 0, "measuring the logit lens")
            _refuse_unusable(state.logit_lens_kls, self._config)
        else:
            uri, state = found
            before = checkpoint.source_of(uri)
            refuse_other_source(
                before, source, whose="this job began with", otherwise="To start over: orch lens train --again"
            )
        self._channel.send(Started(state.tokens_seen, self._facts(state, source)), self._order.job_id)
        recorded = max((ref.tokens_seen for ref in self._order.resume), default=0)
        for point in state.curve:  # of a checkpoint that the database does not know, perhaps
            if recorded < point.tokens_seen <= state.tokens_seen:
                self._channel.send(point, self._order.job_id)
        return state

    def _step(self, state: LensState, grid: list[int]) -> None:
        """Take a step, and measure where the curve has a point."""
        began, before = time.monotonic(), state.tokens_seen
        contexts, context = self._text.contexts, self._config.data.context_length
        size = self._config.training.batch_tokens // context
        ids = self._text.tokens.contexts(contexts.run(before // context, size))
        is_measured = torch.from_numpy(contexts.is_trained(ids))
        state.step(self._divergence, torch.from_numpy(ids), is_measured, alive=lambda: self._alive(before))
        is_due = bisect_right(grid, before) < bisect_right(grid, state.tokens_seen)
        kls = self._measured(state.translate, state.tokens_seen, "measuring") if is_due else None
        state.wall_seconds += time.monotonic() - began
        self._alive(state.tokens_seen)
        if kls is not None:
            self._channel.send(state.point(kls), self._order.job_id)

    def _measured(self, translate: Any, tokens_seen: int, phase: str) -> list[float]:
        ids, is_measured = self._heldout.ids, self._heldout.is_measured
        return self._divergence.kls(ids, is_measured, translate, alive=lambda: self._alive(tokens_seen, phase))

    def _alive(self, tokens_seen: int, phase: str = "training") -> None:
        self._channel.alive(tokens_seen, self._order.job_id, phase=phase)

    def _outcome(self, state: LensState) -> Outcome | None:
        """Return what the curve means so far: a pure function of it, so that a resumed job ends where another does."""
        points = [(point.tokens_seen, point.kl) for point in state.curve]
        reference = mean_kl(state.logit_lens_kls)
        return lens_outcome(points, self._config, logit_lens_kl=reference, tokens_seen=state.tokens_seen)

    def _save(self, state: LensState) -> None:
        folder = self._artifacts / str(self._order.job_id) / str(self._order.attempt)
        saved = checkpoint.save(folder, state, self._config, source=self._source())
        self._channel.send(saved, self._order.job_id)

    def _end(self, state: LensState, outcome: Outcome) -> None:
        """Write the lens, unless it diverged, and report the result."""
        uri, sha256, conditions = None, None, None
        if outcome != "diverged":
            self._save(state)
            lens = state.lens(self._lens_facts())
            conditions = [*lens.check_invertible()]
            uri, sha256 = lens.store(self._artifacts)
        result = LensResult(outcome, state.tokens_seen, uri, sha256, conditions, state.wall_seconds)
        self._channel.send(result, self._order.job_id)

    def _lens_facts(self) -> LensFacts:
        subject = self._config.subject
        return LensFacts(
            model=subject.model, revision=subject.revision, fingerprint=self._subject.fingerprint,
            dtype=subject.dtype, n_layers=self._divergence.n_layers, d_model=self._divergence.d_model,
        )  # fmt: skip

    def _source(self) -> dict[str, Any]:
        """Return which model and which text it reads."""
        tokens = self._text.tokens
        text = {"id": tokens.id, "n_tokens": tokens.n_tokens, "trainable": self._text.contexts.n_vectors}
        model = {
            "class": type(self._subject.model).__name__,
            "n_layers": self._divergence.n_layers,
            "layers": [*range(self._divergence.n_layers)],
            "sha256": self._subject.fingerprint,
        }
        return {"subject": model, "tokens": text}

    def _facts(self, state: LensState, source: dict[str, Any]) -> dict[str, Any]:
        """Return what this attempt found: sizes, the text, what the logit lens scores."""
        commit = git_commit()
        return {
            **source,
            "d_model": state.d_model,
            "lr": self._config.optimizer.lr,
            "logit_lens_kls": state.logit_lens_kls,
            "heldout_tokens": int(self._heldout.is_measured.sum()),
            "text": self._text.name,
            "device": str(self._device),
            "threads": self._order.threads,
            "versions": versions(),
            **({"git_commit": commit} if commit else {}),
        }


def _grid(config: LensConfig) -> list[int]:
    training = config.training
    return evaluation_grid(
        first_point_tokens=training.first_point_tokens, batch_tokens=training.batch_tokens,
        max_tokens=training.max_tokens,
    )  # fmt: skip


def _refuse_unusable(kls: list[float], config: LensConfig) -> None:
    """Refuse a model whose logits or residual stream are not finite.

    Raises:
        SubjectError: names the first layer.
    """
    for layer, kl in enumerate(kls):
        if not math.isfinite(kl):
            raise SubjectError(
                f"what the model's head makes of the output of block {layer} of {config.subject.model} is not finite",
                hint="Set subject.dtype: float32 (or bfloat16).",
            )
