"""One of the jobs that a trainer trains: its state, its steps, its checkpoints and its end."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from orchestrator.curves.outcome import outcome_of
from orchestrator.curves.resting import resting_points
from orchestrator.estimates.memory import BESIDE_LATENTS
from worker.channel import SupervisorChannel
from worker.formats.native import save_final
from worker.protocol import Assignment, CurvePointMessage, Ended, Left
from worker.sae.native.whole_step import WholeStep
from worker.sae.train_state import Step, TrainState, is_small_step, train_step
from worker.trainer import checkpoint
from worker.trainer.train import evaluation_tokens, flops, train


class CaptureCost(NamedTuple):
    """A job's part of what it cost to capture a batch."""

    seconds: float
    flops: float


class JobTraining:
    """A job among those that share a trainer; it knows nothing of the others."""

    def __init__(
        self,
        job: Assignment,
        state: TrainState,
        channel: SupervisorChannel,
        *,
        heldout: Float[Tensor, "n_heldout d_model"],
        slot: int,
        facts: dict[str, Any],
        step: Step = train_step,
    ) -> None:
        """Go on from a state, which may come from a checkpoint; `step` trains it on one batch."""
        self.job_id, self.slot = job.job_id, slot
        self._job, self._state, self._channel, self._facts = job, state, channel, facts
        self._grid = evaluation_tokens(job.config)
        self._batch: Tensor | None = None
        self._is_one_call = isinstance(step, WholeStep)
        self._steps = train(state, self._batches(), config=job.config, heldout=heldout, step=step)

    @property
    def is_small(self) -> bool:
        """Whether a step is too small for more than one thread."""
        return is_small_step(self._state, self._job.config)

    @property
    def n_latents(self) -> int:
        """Return the number of latents."""
        return self._state.model.n_latents

    @property
    def gains_beside(self) -> bool:
        """Whether the next step lets other Python threads run for most of it: one call, or with a point of the curve.

        A point is some dozens of long operations; a step alone may be too many short ones.
        """
        return self.is_small and self.n_latents <= BESIDE_LATENTS and (self._is_one_call or self._measures_next)

    @property
    def tokens_seen(self) -> int:
        """Return the tokens trained on, which is the job's position in the stream."""
        return self._state.tokens_seen

    @property
    def _measures_next(self) -> bool:
        before = self.tokens_seen
        after = before + self._job.config.training.batch_tokens
        return bisect_right(self._grid, before) < bisect_right(self._grid, after)

    def step(self, batch: Float[Tensor, "n_vectors d_model"], cost: CaptureCost) -> str | None:
        """Take one training step and report it; return the job's outcome, once there is one."""
        self._state.wall_seconds += cost.seconds
        self._state.flops_subject += cost.flops
        self._batch = batch
        progress = next(self._steps, None)
        self._batch = None
        if progress is None:
            return self.outcome_so_far() or "max_tokens"
        self._channel.alive(progress.tokens_seen, self.job_id)
        if progress.point is None:
            return None
        self._channel.send(CurvePointMessage(progress.point), self.job_id)
        return self.outcome_so_far()

    def outcome_so_far(self) -> str | None:
        """Return the outcome that the curve means so far, None while training goes on.

        A pure function of the curve: a resumed job ends where an uninterrupted one does.
        """
        untrained = self._state.untrained_fvu
        return outcome_of(
            resting_points(self._state.curve), self._job.config, untrained_fvu=untrained, tokens_seen=self.tokens_seen
        )

    def save(self) -> None:
        """Write a checkpoint and report it."""
        saved = checkpoint.save(Path(self._job.artifacts), self._state, self._job.config, facts=self._facts)
        self._channel.send(saved, self.job_id)

    def leave(self, *, save: bool) -> None:
        """Stop as the supervisor asked, with a checkpoint or without."""
        if save:
            self.save()
        self._channel.send(Left(self.tokens_seen), self.job_id)

    def end(self, outcome: str) -> None:
        """Write the final autoencoder, unless the job diverged, and report the result."""
        state, config, uri = self._state, self._job.config, None
        if outcome != "diverged":
            self.save()
            uri = save_final(Path(self._job.artifacts), state, config, facts=self._facts).uri
        flops_dense, flops_executed = flops(state, config.sae)
        ended = Ended(
            outcome=outcome,
            tokens_seen=state.tokens_seen,
            untrained_fvu=math.nan if state.untrained_fvu is None else state.untrained_fvu,
            artifact_uri=uri,
            wall_seconds=state.wall_seconds,
            flops_dense=flops_dense,
            flops_executed=flops_executed,
            flops_subject=state.flops_subject,
        )
        self._channel.send(ended, self.job_id)

    def _batches(self) -> Iterator[Tensor]:
        while self._batch is not None:
            yield self._batch
