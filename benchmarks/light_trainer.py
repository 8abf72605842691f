"""A trainer that trains nothing: the real protocol, real checkpoints, and a curve no interruption may change.

`python -m benchmarks.light_trainer` replaces the real trainer, starts in a quarter of a second instead of
four, and steps a generator of pseudo-random numbers, whose state is in the checkpoint: a job that was resumed from the
wrong place, or twice, draws another curve than `expected` does.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig
from orchestrator.curves.point import Point, point_of
from worker.channel import SupervisorChannel, carried_out
from worker.protocol import Assignment, CurvePointMessage, Ended, Exit, Left, Order, Started

STEP_SECONDS = "ORCH_SOAK_STEP_SECONDS"
POINT_STEPS = 4
SIZES = {"n_latents": 64, "d_model": 32, "lr": 0.01, "device": "cpu", "threads": 1}
_MASK = 2**64 - 1


class Walk:
    """The state of one job: how far it is, and a number that depends on every step before."""

    def __init__(self, config: JobConfig, tokens_seen: int = 0, number: int | None = None) -> None:
        self.tokens_seen = tokens_seen
        self._step_tokens, self._budget = config.training.batch_tokens, config.training.max_tokens
        self.number = config.training.seed if number is None else number

    @property
    def is_done(self) -> bool:
        return self.tokens_seen >= self._budget

    @classmethod
    def whole(cls, config: JobConfig) -> "Walk":
        """Return the state of a job that was never interrupted, at its end."""
        walk = cls(config)
        while not walk.is_done:
            walk.step()
        return walk

    def step(self) -> Point | None:
        """Go on by one batch; return the point that is due there, if one is."""
        self.number = (self.number * 6364136223846793005 + 1442695040888963407) & _MASK
        self.tokens_seen += self._step_tokens
        due = self.is_done or self.tokens_seen % (POINT_STEPS * self._step_tokens) == 0
        return self._point() if due else None

    def _point(self) -> Point:
        fvu = 0.1 + self.tokens_seen**-0.25 + self.number / _MASK * 1e-3
        return point_of(dict.fromkeys(Point._fields[:-1], 1.0) | {"tokens_seen": self.tokens_seen, "fvu": fvu})


def expected(config: JobConfig) -> list[tuple[int, float]]:
    """Return the curve of a job that was never interrupted, as (tokens, fvu)."""
    walk, points = Walk(config), []
    while not walk.is_done:
        if point := walk.step():
            points.append((point.tokens_seen, point.fvu))
    return points


class LightJob:
    """One job of an order."""

    def __init__(self, job: Assignment, channel: SupervisorChannel) -> None:
        self.job_id, self._artifacts, self._channel = job.job_id, Path(job.artifacts), channel
        self._walk = next((walk for saved in job.resume if (walk := _resumed(job.config, saved))), Walk(job.config))
        channel.send(Started(self._walk.tokens_seen, SIZES), job.job_id)

    @property
    def tokens_seen(self) -> int:
        return self._walk.tokens_seen

    def step(self) -> bool:
        """Take a step; say whether the job is done, and its result sent."""
        if not self._walk.is_done and (point := self._walk.step()):
            self._channel.send(CurvePointMessage(point), self.job_id)
        self._channel.alive(self.tokens_seen, self.job_id)
        if self._walk.is_done:
            self._end()
        return self._walk.is_done

    def save(self) -> None:
        self._channel.send(self._publish(str(self.tokens_seen)), self.job_id)

    def leave(self, *, save: bool) -> None:
        if save:
            self.save()
        self._channel.send(Left(self.tokens_seen), self.job_id)

    def _end(self) -> None:
        self.save()
        uri = self._publish("final").uri
        self._channel.send(Ended("max_tokens", self.tokens_seen, 1.0, uri, 1.0, 1.0, 1.0, 1.0), self.job_id)

    def _publish(self, name: str) -> CheckpointRef:
        """Write a folder as the real checkpoint does: beside, flushed, with its sums, renamed last."""
        target, partial = self._artifacts / name, self._artifacts / f".{name}.{os.getpid()}.partial"
        state = json.dumps({"tokens_seen": self.tokens_seen, "number": self._walk.number}).encode()
        sums = {"state.json": hashlib.sha256(state).hexdigest()}
        manifest = json.dumps({"format": 1, "sha256": sums}).encode()
        if not target.exists():
            partial.mkdir(parents=True)
            for file, text in (("state.json", state), ("manifest.json", manifest)):
                with (partial / file).open("wb") as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
            partial.rename(target)
        return CheckpointRef(str(target.absolute()), self.tokens_seen, hashlib.sha256(manifest).hexdigest())


def _resumed(config: JobConfig, saved: CheckpointRef) -> Walk | None:
    """Read a checkpoint; None if it is not whole."""
    try:
        manifest = (Path(saved.uri) / "manifest.json").read_bytes()
        state = (Path(saved.uri) / "state.json").read_bytes()
        sums = json.loads(manifest)["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    whole = hashlib.sha256(manifest).hexdigest() == saved.sha256
    return Walk(config, **json.loads(state)) if whole and hashlib.sha256(state).hexdigest() in sums.values() else None


def main() -> int:
    """Carry out one order; return the exit status. What fails is classified as the real trainer does it."""
    channel = SupervisorChannel()
    return carried_out(channel, lambda: _train(channel))


def _train(channel: SupervisorChannel) -> int:
    order = channel.order(Order.from_json)
    pause = float(os.environ.get(STEP_SECONDS, "0"))
    jobs = [LightJob(job, channel) for job in order.jobs]
    channel.training_from({job.job_id: job.tokens_seen for job in jobs})
    saved_at = float("-inf")
    while jobs:
        jobs = [job for job in jobs if not job.step()]
        leaving = {request.job_id: request for request in channel.drop_requests()}
        for job in [job for job in jobs if job.job_id in leaving]:
            job.leave(save=leaving[job.job_id].save)
            jobs.remove(job)
        if channel.must_yield or time.monotonic() - saved_at >= order.checkpoint_seconds:
            saved_at = time.monotonic()
            for job in jobs:
                job.save()
        if channel.must_yield:
            return Exit.YIELDED
        time.sleep(pause)
    return Exit.DONE


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
