"""One of the jobs that a trainer trains: its state, its steps, its checkpoints and its end."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from orchestrator.curves.convergence import has_converged, has_diverged
from worker.protocol import Assignment, CurvePointMessage, Ended, Left
from worker.sae.train_state import Step, TrainState, train_step
from worker.trainer import checkpoint
from worker.trainer.channel import SupervisorChannel
from worker.trainer.train import flops, train


class CaptureCost(NamedTuple):
    """A job's part in what a batch cost before anybody was trained on it."""

    seconds: float
    flops: float


class JobTraining:
    """A job among those that share a trainer. It knows nothing of the others."""

    def __init__(
        self,
        job: Assignment,
        trainee: TrainState,
        line: SupervisorChannel,
        *,
        heldout: Tensor,
        place: int,
        facts: dict[str, Any],
        step: Step = train_step,
    ) -> None:
        """Take a trainee over; it stands where its checkpoint left it. `step` is what takes it further."""
        self.job_id, self.place = job.job_id, place
        self._job, self._trainee, self._line, self._facts = job, trainee, line, facts
        self._batch: Tensor | None = None
        self._steps = train(trainee, self._batches(), config=job.config, heldout=heldout, step=step)

    @property
    def tokens_seen(self) -> int:
        """Return the place in the stream it stands at."""
        return self._trainee.tokens_seen

    def step(self, batch: Tensor, share: CaptureCost) -> str | None:
        """Take one step, and report; return the outcome, once there is one."""
        self._trainee.wall_seconds += share.seconds
        self._trainee.flops_subject += share.flops
        self._batch = batch
        progress = next(self._steps, None)
        self._batch = None
        if progress is None:
            return "max_tokens"
        self._line.alive(progress.tokens_seen, self.job_id)
        if progress.point is None:
            return None
        self._line.send(CurvePointMessage(progress.point), self.job_id)
        return self.verdict()

    def verdict(self) -> str | None:
        """Say what the curve means so far: a pure function of it, so that a resumed job ends where any other does."""
        stop, budget = self._job.config.stop, self._job.config.training.max_tokens
        curve = [(point.tokens_seen, point.fvu) for point in self._trainee.curve]
        if has_diverged(curve, max_tokens=budget):
            return "diverged"
        if stop.rule == "plateau" and has_converged(curve, epsilon=stop.epsilon):
            return "converged"
        return "max_tokens" if self.tokens_seen >= budget else None

    def save(self) -> None:
        """Write a checkpoint."""
        saved = checkpoint.save(Path(self._job.artifacts), self._trainee, self._job.config, facts=self._facts)
        self._line.send(saved, self.job_id)

    def leave(self, *, save: bool) -> None:
        """Go, as was wished, with a checkpoint or without."""
        if save:
            self.save()
        self._line.send(Left(self.tokens_seen), self.job_id)

    def end(self, outcome: str) -> None:
        """Put the final autoencoder in its place and send the result."""
        trainee, config, uri = self._trainee, self._job.config, None
        if outcome != "diverged":
            self.save()
            uri = checkpoint.save_final(Path(self._job.artifacts), trainee, config, facts=self._facts).uri
        dense, executed = flops(trainee, config.sae)
        ended = Ended(
            outcome=outcome,
            tokens_seen=trainee.tokens_seen,
            untrained_fvu=math.nan if trainee.untrained_fvu is None else trainee.untrained_fvu,
            artifact_uri=uri,
            wall_seconds=trainee.wall_seconds,
            flops_dense=dense,
            flops_executed=executed,
            flops_subject=trainee.flops_subject,
        )
        self._line.send(ended, self.job_id)

    def _batches(self) -> Iterator[Tensor]:
        while self._batch is not None:
            yield self._batch
