"""An evaluation that measures nothing: the real protocol, and scores that no interruption may change.

`python -m benchmarks.light_evaluation` replaces the real one. The scores follow from the number in the files of the
SAE, and so from the config that it was trained by: those of another SAE, family or metric are not `expected_scores`.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.light_trainer import Walk
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.job import JobConfig
from orchestrator.errors import StorageError
from worker import checked_folder
from worker.channel import SupervisorChannel, carried_out
from worker.evaluation_order import EvaluationAssignment, EvaluationOrder
from worker.protocol import Evaluated, Exit, Failure, Left, Scored, Started

FAMILY_SECONDS = "ORCH_SOAK_FAMILY_SECONDS"
PLAN = EvaluationPlan(metrics=("reconstruction", "downstream", "ablation", "structure"))
KEEPS_FILES = "structure"
VARIANTS = ("", "baseline")
"""Of the metric that each family has, by the family's name."""


def expected_scores(config: JobConfig) -> dict[tuple[str, str, str], float]:
    """Return the scores of the SAE of a training, by family, metric and variant."""
    number = Walk.whole(config).number
    return {
        (family, family, variant): _value(number, family, variant) for family in PLAN.metrics for variant in VARIANTS
    }


def _value(number: int, metric: str, variant: str) -> float:
    digest = hashlib.sha256(f"{number} {metric} {variant}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


class LightEvaluation:
    """One job of an order."""

    def __init__(self, job: EvaluationAssignment, channel: SupervisorChannel) -> None:
        """Read the files of its SAE, and report the start."""
        self.job_id, self._job, self._channel = job.job_id, job, channel
        checked_folder.verify(Path(job.evaluated.uri))
        self._number: int = json.loads((Path(job.evaluated.uri) / "state.json").read_text())["number"]
        self._postponed: Failure | None = None
        channel.send(Started(0, {"device": "cpu", "threads": 1}), job.job_id)

    def measure(self, family: str, seconds: float) -> None:
        """Report one family, unless it is measured; what cannot be kept is left to another attempt, as really."""
        if family in self._job.measured:
            return
        scores = [
            {"metric": family, "variant": variant, "value": _value(self._number, family, variant)}
            for variant in VARIANTS
        ]
        try:
            kept = self._keep(family, scores) if family == KEEPS_FILES else None
        except StorageError as error:
            self._postponed = Failure.of(error)
            return
        self._channel.send(Scored(family, scores, seconds, kept, 1, "no text"), self.job_id)

    def end(self) -> None:
        self._channel.send(self._postponed or Evaluated(1.0), self.job_id)

    def _keep(self, family: str, scores: Sequence[dict[str, Any]]) -> str:
        folder = Path(self._job.artifacts) / family
        checked_folder.write_folder(
            folder, lambda into: checked_folder.write_text(into / "scores.json", json.dumps(scores))
        )
        return str(folder)


def main() -> int:
    """Carry out one order; return the exit status. What fails is classified as the real evaluation does it."""
    channel = SupervisorChannel()
    return carried_out(channel, lambda: _evaluate(channel))


def _evaluate(channel: SupervisorChannel) -> Exit:
    """Measure family by family, and in each one SAE after the other."""
    order = channel.order(EvaluationOrder.from_json)
    pause = float(os.environ.get(FAMILY_SECONDS, "0"))
    jobs = {job.job_id: LightEvaluation(job, channel) for job in order.jobs}

    def drop_requested() -> None:
        for request in channel.drop_requests():
            if jobs.pop(request.job_id, None):
                channel.send(Left(0), request.job_id)

    for family in PLAN.metrics:
        for job_id in [*jobs]:
            _work(pause, channel, drop_requested)
            if job_id in jobs:
                jobs[job_id].measure(family, pause)
    for job in jobs.values():
        job.end()
    return Exit.DONE


def _work(seconds: float, channel: SupervisorChannel, drop_requested: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        channel.alive(0)
        drop_requested()
        time.sleep(min(0.05, seconds))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
