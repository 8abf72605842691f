"""Short calls for tests of evaluation jobs: SAEs that were trained, without training, and their evaluations."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, select

from orchestrator import queue, saes
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.database.engine import reading
from orchestrator.database.models import Job, MeasuredFamily, ScoreRow
from orchestrator.queue import Claim, Lease
from orchestrator.saes import NewSae
from tests.queue_shorthand import claim, point, result

FACTS = {"n_latents": 64, "d_model": 16, "lr": 0.1, "k_aux": 8, "heldout_tokens": 4096, "subject": {"n_layers": 6}}
BOTH = EvaluationPlan(metrics=("reconstruction", "downstream"))


def train(engine: Engine, *, artifact: str | None = "", **values: Any) -> int:
    """Let the next job be trained; return it. `artifact`: None: it diverged before there was an SAE."""
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(100, 0.25, fvu_raw=0.5, l0=7.5)])
    uri = f"/away/{lease.job_id}/{lease.attempt}/final" if artifact == "" else artifact
    queue.finish(engine, lease, result(artifact_uri=uri, **values))
    return lease.job_id


def imported(engine: Engine, name: str = "scope", **facts: Any) -> int:
    """Enter an SAE that was brought in; return its number."""
    known: dict[str, Any] = {
        "selection": "jumprelu", "d_model": 16, "n_latents": 64, "normalize": "none", "subtracts_bias": False,
        "dtype": "float32", "subject": "org/model", "layers": (3,), "site": "resid_post",
    }  # fmt: skip
    new = NewSae(
        name=name, format="gemma_scope", source="org/repo/a", sha256="00", uri=f"/away/{name}/sae",
        facts=SaeFacts(**known | facts), measured=None, state="verified", note="",
    )  # fmt: skip
    return saes.add(engine, new)


def evaluate(engine: Engine, *sae_ids: int, plan: EvaluationPlan = BOTH, **how: Any) -> list[int]:
    """Queue evaluations; return their jobs."""
    return [one.job_id for one in queue.evaluate(engine, plan, sae_ids, **how) if one.job_id is not None]


def take(engine: Engine) -> Claim:
    """Claim the next job, which must be an evaluation."""
    taken = claim(engine)
    assert taken.kind == "evaluate"
    return taken


def score(metric: str, value: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value} | more


def record(engine: Engine, lease: Lease, family: str, *scores: dict[str, Any]) -> bool:
    """Store scores of a family; without any, one that is named as it is."""
    return queue.record_scores(engine, lease, family, scores or [score(family)], wall_seconds=1.0)


def run(engine: Engine, families: Sequence[str] = BOTH.metrics) -> int:
    """Let the next evaluation be run to its end; return the job."""
    lease = take(engine).lease
    queue.begin_evaluation(engine, lease, {"device": "cpu"})
    for family in families:
        record(engine, lease, family)
    queue.finish_evaluation(engine, lease, 2.0)
    return lease.job_id


def scores(engine: Engine, job_id: int | None = None) -> dict[tuple[int, str, str], float | None]:
    """Return the stored scores by job, metric and variant."""
    with reading(engine) as session:
        rows = session.execute(select(ScoreRow.job_id, ScoreRow.metric, ScoreRow.variant, ScoreRow.value)).all()
    return {(row.job_id, row.metric, row.variant): row.value for row in rows if job_id in (None, row.job_id)}


def families(engine: Engine, job_id: int) -> dict[str, str]:
    with reading(engine) as session:
        query = select(MeasuredFamily.family, MeasuredFamily.state).where(MeasuredFamily.job_id == job_id)
        return {row.family: row.state for row in session.execute(query)}


def evaluations(engine: Engine) -> list[int]:
    with reading(engine) as session:
        return list(session.scalars(select(Job.id).where(Job.kind == "evaluate").order_by(Job.id)))
