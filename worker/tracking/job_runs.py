"""How a job looks in MLflow: computed from the database alone, so that doing it twice changes nothing."""

import math
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.flat_keys import flatten
from orchestrator.database.models import Attempt, CurvePoint, LensPointRow
from orchestrator.job_states import OUTCOMES, TERMINAL
from orchestrator.settings import Settings
from worker.tracking.job_record import JobRecord, draw_curve, measures_of, read
from worker.tracking.mlflow_client import Measure, MlflowClient
from worker.tracking.score_runs import project_scores

_JOB_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_STOPPED = ("preempted", "paused", "cancelled")


class Projection:
    """MLflow's view of the database: an experiment per sweep, a run per job, a run inside it per attempt."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Connect with the store."""
        self._engine, self._settings = engine, settings
        self._runs = MlflowClient(settings)
        self.set_aside = self._runs.set_aside
        """Where a damaged store has gone; None: there was none."""
        self._shipped: dict[str, int] = {}
        self._closed: set[str] = set()
        self._resolved: set[str] = set()
        """Runs whose params say what `auto` came to."""
        self._budgets: dict[str, int] = {}
        """By run: the budget that `orch extend` gave its job."""

    def project(self, job_id: int) -> None:
        """Bring MLflow up to date with one job: it has a run, but the scores of an evaluation go to that of its SAE."""
        record = read(self._engine, job_id)
        if record.job.kind == "evaluate":
            project_scores(self._engine, self._runs, job_id, run_of_job=self._run_of)
        else:
            self._project_training(record)

    def _run_of(self, job_id: int) -> str:
        """Return the run of a training job, made where there is none."""
        return self._project_training(read(self._engine, job_id))

    def _project_training(self, record: JobRecord) -> str:
        sweep = record.sweep
        experiment = self._runs.experiment(sweep.name, known=sweep.mlflow_experiment_id, number=sweep.id)
        if experiment != sweep.mlflow_experiment_id:
            queue.set_mlflow(self._engine, sweep_id=sweep.id, mlflow_id=experiment)
        run = self._job_run(record, experiment)
        for attempt in record.attempts:
            self._attempt(record, attempt, run, experiment)
        self._ship(run, record, (p for p in record.curve if p.tokens_seen <= record.settled_tokens))
        if record.job.state in TERMINAL and run not in self._closed:
            self._complete(record, run)
        elif record.job.state not in TERMINAL and run in self._closed:
            self._runs.reopen(run)
            self._closed.discard(run)
        return run

    def _job_run(self, record: JobRecord, experiment: str) -> str:
        job = record.job
        identity = {"orch.job_id": job.id, "orch.config_id": job.config_id, "orch.kind": "job"}
        run = self._runs.find(job.mlflow_run_id, experiment, identity)
        if run is None:
            labels = {f"orch.label.{name}": value for name, value in record.sweep.labels.items()}
            tags = {**identity, **labels, "orch.sweep": record.sweep.name}
            run = self._runs.create(experiment, record.name, tags=tags, at=job.created_at)
        elif run not in self._shipped and job.state not in TERMINAL:
            self._runs.reopen(run)  # it was over, and has been retried or extended since
        if run not in self._shipped:
            self._runs.params(run, record.params)
        if run not in self._resolved and record.resolved:
            self._runs.params(run, record.resolved)
            self._resolved.add(run)
        if job.asked_config is not None and self._budgets.get(run) != job.max_tokens:
            self._runs.tag(run, "orch.extended_to_tokens", str(job.max_tokens))
            self._budgets[run] = job.max_tokens
        if run != job.mlflow_run_id:
            queue.set_mlflow(self._engine, job_id=job.id, mlflow_id=run)
        return run

    def _attempt(self, record: JobRecord, attempt: Attempt, parent: str, experiment: str) -> None:
        if attempt.facts is None or (attempt.mlflow_run_id or "") in self._closed:
            return  # it never began, or its run is final
        job = record.job
        identity = {"orch.job_id": job.id, "orch.config_id": job.config_id, "orch.attempt": attempt.attempt}
        run = self._runs.find(attempt.mlflow_run_id, experiment, identity)
        if run is None:
            commit = attempt.facts.get("git_commit")
            tags = {
                **identity, "orch.kind": "attempt", "orch.sweep": record.sweep.name, "orch.worker": attempt.worker,
                "mlflow.parentRunId": parent, **({"mlflow.source.git.commit": commit} if commit else {}),
            }  # fmt: skip
            name = f"job {job.id} attempt {attempt.attempt}"
            run = self._runs.create(experiment, name, tags=tags, at=attempt.started_at)
        elif run not in self._shipped:
            self._runs.tag(run, "mlflow.parentRunId", parent)  # that of its job may have been deleted, and made anew
        if run not in self._shipped:
            self._runs.params(run, flatten(attempt.facts))
        if run != attempt.mlflow_run_id:
            queue.set_mlflow(self._engine, job_id=job.id, attempt=attempt.attempt, mlflow_id=run)
        self._ship(run, record, (p for p in record.curve if p.attempt == attempt.attempt))
        if attempt.ended_at is not None:
            stopped = "KILLED" if attempt.outcome in _STOPPED else "FAILED"
            self._runs.end(run, "FINISHED" if attempt.outcome in OUTCOMES else stopped, at=attempt.ended_at)
            self._closed.add(run)

    def _ship(self, run: str, record: JobRecord, points: Iterable[CurvePoint | LensPointRow]) -> None:
        """Log the points that are new. A point's time is the job's created_at plus its training time, always."""
        new = [point for point in points if point.tokens_seen > self._shipped.get(run, -1)]
        self._runs.measures(
            run,
            [
                Measure(name, value, point.tokens_seen, record.job.created_at + (point.wall_seconds or 0.0))
                for point in new
                for name, value in measures_of(point).items()
                if value is not None and math.isfinite(value)
            ],
        )
        self._shipped[run] = max((point.tokens_seen for point in new), default=self._shipped.get(run, 0))

    def _complete(self, record: JobRecord, run: str) -> None:
        job, step = record.job, record.final_tokens
        at = job.finished_at or job.created_at
        self._runs.measures(run, [Measure(name, v, step, at) for name, v in record.final_values.items()])
        if record.curve:
            with TemporaryDirectory(prefix="orch-") as folder:
                draw_curve(record, Path(folder, "curve.png"))
                self._runs.add_file(run, Path(folder, "curve.png"), "curve")
        uri, name = record.artifact or ("", "")
        if uri and not self._runs.has_file(run, name):
            artifacts = self._settings.artifacts_folder.resolve()
            for file in sorted(Path(self._settings.artifact(uri)).glob("*")):
                if file.resolve().is_relative_to(artifacts):  # whatever the database or a link says
                    self._runs.add_file(run, file, name)
        self._runs.end(run, _JOB_STATUS[job.state], at=at)
        self._closed.add(run)
