"""How a job looks in MLflow: computed from the database alone, so that doing it twice changes nothing."""

import math
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlparse

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.flat_keys import flatten
from orchestrator.database.models import TERMINAL, Attempt, CurvePoint
from orchestrator.settings import Settings
from worker.tracking.job_record import MEASURES, JobRecord, draw_curve, read
from worker.tracking.mlflow_client import Measure, MlflowClient

_JOB_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_STOPPED = ("preempted", "paused", "cancelled")


class Projection:
    """MLflow's view of the database: an experiment per sweep, a run per job, a run inside it per attempt."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Connect with the store."""
        self._engine, self._artifacts = engine, settings.artifacts_folder
        self._runs = MlflowClient(settings)
        self._shipped: dict[str, int] = {}
        self._closed: set[str] = set()

    def project(self, job_id: int) -> None:
        """Bring MLflow up to date with one job."""
        portrait = read(self._engine, job_id)
        sweep = portrait.sweep
        experiment = self._runs.experiment(sweep.name, known=sweep.mlflow_experiment_id, number=sweep.id)
        if experiment != sweep.mlflow_experiment_id:
            queue.set_mlflow(self._engine, sweep_id=sweep.id, mlflow_id=experiment)
        run = self._job_run(portrait, experiment)
        for attempt in portrait.attempts:
            self._attempt(portrait, attempt, run, experiment)
        self._ship(run, portrait, (p for p in portrait.points if p.tokens_seen <= portrait.settled_tokens))
        if portrait.job.state in TERMINAL and run not in self._closed:
            self._complete(portrait, run)
        elif portrait.job.state not in TERMINAL and run in self._closed:
            self._runs.reopen(run)
            self._closed.discard(run)

    def _job_run(self, portrait: JobRecord, experiment: str) -> str:
        job = portrait.job
        marks = {"orch.job_id": job.id, "orch.config_id": job.config_id, "orch.kind": "job"}
        run = self._runs.find(job.mlflow_run_id, experiment, marks)
        if run is None:
            labels = {f"orch.label.{name}": value for name, value in portrait.sweep.labels.items()}
            name = f"job {job.id}: n={job.n_latents or 'auto'} k={job.k} seed={job.seed}"
            tags = {**marks, **labels, "orch.sweep": portrait.sweep.name}
            run = self._runs.create(experiment, name, tags=tags, at=job.created_at)
        if run not in self._shipped:
            self._runs.params(run, portrait.params)
        if run != job.mlflow_run_id:
            queue.set_mlflow(self._engine, job_id=job.id, mlflow_id=run)
        return run

    def _attempt(self, portrait: JobRecord, attempt: Attempt, parent: str, experiment: str) -> None:
        if attempt.facts is None or (attempt.mlflow_run_id or "") in self._closed:
            return  # it never began, or nothing about it can change any more
        job = portrait.job
        marks = {"orch.job_id": job.id, "orch.config_id": job.config_id, "orch.attempt": attempt.attempt}
        run = self._runs.find(attempt.mlflow_run_id, experiment, marks)
        if run is None:
            commit = attempt.facts.get("git_commit")
            tags = {
                **marks, "orch.kind": "attempt", "orch.sweep": portrait.sweep.name, "orch.worker": attempt.worker,
                "mlflow.parentRunId": parent, **({"mlflow.source.git.commit": commit} if commit else {}),
            }  # fmt: skip
            name = f"job {job.id} attempt {attempt.attempt}"
            run = self._runs.create(experiment, name, tags=tags, at=attempt.started_at)
        if run not in self._shipped:
            self._runs.params(run, flatten(attempt.facts))
        if run != attempt.mlflow_run_id:
            queue.set_mlflow(self._engine, job_id=job.id, attempt=attempt.attempt, mlflow_id=run)
        self._ship(run, portrait, (p for p in portrait.points if p.attempt == attempt.attempt))
        if attempt.ended_at is not None:
            stopped = "KILLED" if attempt.outcome in _STOPPED else "FAILED"
            good = portrait.result is not None and portrait.result.attempt == attempt.attempt
            self._runs.end(run, "FINISHED" if good else stopped, at=attempt.ended_at)
            self._closed.add(run)

    def _ship(self, run: str, portrait: JobRecord, points: Iterable[CurvePoint]) -> None:
        """Ship what is new. A point's time is the job's making plus its training time, whoever ships it."""
        new = [point for point in points if point.tokens_seen > self._shipped.get(run, -1)]
        self._runs.measures(
            run,
            [
                Measure(name, value, point.tokens_seen, portrait.job.created_at + (point.wall_seconds or 0.0))
                for point in new
                for name in MEASURES
                if (value := getattr(point, name)) is not None and math.isfinite(value)
            ],
        )
        self._shipped[run] = max((point.tokens_seen for point in new), default=self._shipped.get(run, 0))

    def _complete(self, portrait: JobRecord, run: str) -> None:
        job, result = portrait.job, portrait.result
        at = job.finished_at or job.created_at
        step = result.tokens_seen if result else 0
        self._runs.measures(run, [Measure(name, v, step, at) for name, v in portrait.final_values.items()])
        if portrait.points:
            with TemporaryDirectory(prefix="orch-") as folder:
                draw_curve(portrait, Path(folder, "curve.png"))
                self._runs.add_file(run, Path(folder, "curve.png"), "curve")
        if result and result.artifact_uri and not self._runs.has_file(run, "sae"):
            for file in sorted(_local(result.artifact_uri).glob("*")):
                if file.resolve().is_relative_to(self._artifacts.resolve()):  # whatever the database or a link says
                    self._runs.add_file(run, file, "sae")
        self._runs.end(run, _JOB_STATUS[job.state], at=at)
        self._closed.add(run)


def _local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path)) if uri.startswith("file:") else Path(uri)
