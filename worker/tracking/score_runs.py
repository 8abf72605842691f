"""How scores look in MLflow: metrics of the run of the job that trained the SAE, beside its config and its loss.

So a sweep's SAEs stand side by side, scores and configs as the axes of one plot. An SAE that was brought in has no such
run: it gets one in the experiment of its evaluation. Computed from the database alone.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Engine, select

from orchestrator import queue, saes
from orchestrator.config.flat_keys import flatten
from orchestrator.database.engine import reading
from orchestrator.database.models import Job, ResultRow, SaeRow, ScoreRow, SweepRow
from orchestrator.saes import SaeEntry
from worker.tracking.mlflow_client import Measure, MlflowClient

_REFUSED = re.compile(r"[^\w./ -]")
"""Characters that MLflow does not take in the name of a metric."""


class _Evaluation(NamedTuple):
    """An evaluation job with its SAE and its scores."""

    job: Job
    sweep: SweepRow
    sae: SaeEntry | None
    """None: it is gone."""
    scores: list[ScoreRow]
    step: int
    """Training tokens of the SAE; 0: not known."""


def project_scores(engine: Engine, runs: MlflowClient, job_id: int, *, run_of_job: Callable[[int], str]) -> None:
    """Bring MLflow up to date with the scores of an evaluation job; `run_of_job` gives the run of a training job."""
    found = _read(engine, job_id)
    if not found.scores or found.sae is None:
        return
    is_ours = found.sae.job_id is not None
    run = run_of_job(found.sae.job_id) if found.sae.job_id is not None else _own_run(engine, runs, found, found.sae)
    runs.measures(
        run,
        [
            Measure(name_of(row.family, row.metric, row.variant), row.value, found.step, row.created_at)
            for row in found.scores
            if row.value is not None and math.isfinite(row.value)
        ],
    )
    if not is_ours:
        runs.end(run, "FINISHED", at=max(row.created_at for row in found.scores))


def name_of(family: str, metric: str, variant: str) -> str:
    """Return what a score is called in MLflow: downstream/delta_ce, downstream/delta_ce first."""
    return _REFUSED.sub("_", f"{family}/{metric} {variant}".strip())


def _own_run(engine: Engine, runs: MlflowClient, found: _Evaluation, sae: SaeEntry) -> str:
    sweep = found.sweep
    experiment = runs.experiment(sweep.name, known=sweep.mlflow_experiment_id, number=sweep.id)
    if experiment != sweep.mlflow_experiment_id:
        queue.set_mlflow(engine, sweep_id=sweep.id, mlflow_id=experiment)
    identity = {"orch.kind": "sae", "orch.sae_id": sae.id}
    run = runs.find(found.job.mlflow_run_id, experiment, identity)
    if run is None:
        run = runs.create(experiment, sae.label, tags=identity, at=found.job.created_at)
        runs.params(run, flatten(sae.facts.as_json()))
    if run != found.job.mlflow_run_id:
        queue.set_mlflow(engine, job_id=found.job.id, mlflow_id=run)
    return run


def _read(engine: Engine, job_id: int) -> _Evaluation:
    with reading(engine) as session:
        job = session.get_one(Job, job_id)
        scores = [*session.scalars(select(ScoreRow).where(ScoreRow.job_id == job_id).order_by(ScoreRow.id))]
        trained = select(ResultRow.tokens_seen).join(SaeRow, SaeRow.job_id == ResultRow.job_id)
        same = (SaeRow.id == job.sae_id, SaeRow.attempt == (scores[0].sae_attempt if scores else None))
        step = session.scalar(trained.where(*same)) or 0
        sae = next(iter(saes.read(session, [job.sae_id])), None) if job.sae_id is not None else None
        found = _Evaluation(job, session.get_one(SweepRow, job.sweep_id), sae, scores, step)
        session.expunge_all()
    return found
