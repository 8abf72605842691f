"""Evaluation jobs in the queue: asked for, claimed, measured family by family, ended; on both databases."""

import json
import uuid
from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select, update

from orchestrator import queue, results, saes
from orchestrator.config.evaluation.evaluation import EvaluationConfig, EvaluationPlan
from orchestrator.database.engine import reading, transaction
from orchestrator.database.models import Job, MeasuredFamily, ScoreRow, SweepRow, WorkerRow
from orchestrator.errors import NotFound, StateError
from orchestrator.evaluation.job_scores import sweep_scores
from orchestrator.queue import LeaseLost, workers
from orchestrator.sweep.sweep import Sweep
from tests.evaluation_shorthand import (
    BOTH,
    FACTS,
    evaluate,
    evaluations,
    families,
    imported,
    record,
    run,
    score,
    scores,
    take,
    train,
)
from tests.queue_shorthand import (
    WORKER,
    claim,
    enqueue,
    events,
    job,
    lose,
    nothing_to_claim,
    point,
    ref,
    result,
    state,
    sweep,
)

EVALUATED = replace(sweep(1), evaluation=BOTH)


def companion(engine: Engine, leader: queue.Claim) -> queue.Claim | None:
    return queue.claim_companion(engine, WORKER, leader=leader, token=uuid.uuid4().hex, lease_seconds=60.0)


def test_an_evaluation_is_claimed_with_its_sae_and_what_to_measure(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1)
    taken = take(engine)
    assert (taken.lease.job_id, taken.sweep, taken.measured) == (job_id, "s", ())
    assert isinstance(taken.config, EvaluationConfig)
    assert (taken.config.plan, taken.config.sae.id, taken.config.sae.attempt) == (BOTH, 1, 1)
    assert taken.evaluated is not None
    assert (taken.evaluated.uri, taken.evaluated.label) == ("/away/1/1/final", "1")
    assert taken.evaluated.read_facts().n_latents == 64
    row = job(engine, job_id)
    assert (row.k, row.n_latents, row.d_model, row.max_tokens) == (32, 64, 16, taken.config.heldout_tokens)
    assert (row.config_id, row.stream_key) == (taken.config.config_id, taken.config.stream_key)


def test_what_is_there_is_not_queued_again_unless_it_is_asked_for(engine: Engine) -> None:
    enqueue(engine, 2)
    train(engine)
    train(engine)
    assert [one.is_new for one in queue.evaluate(engine, BOTH, [1, 2])] == [True, True]
    assert [(one.job_id, one.is_new) for one in queue.evaluate(engine, BOTH, [1, 2])] == [(3, False), (4, False)]
    (again,) = queue.evaluate(engine, BOTH, [1], again=True)
    assert (again.is_new, job(engine, again.job_id or 0).replica) == (True, 1)
    (other,) = queue.evaluate(engine, EvaluationPlan(metrics=("probes",)), [1], dry_run=True)
    assert (other.job_id, other.is_new) == (None, True)
    assert evaluations(engine) == [3, 4, 5]


def test_the_number_of_an_evaluation_leads_to_its_sae(engine: Engine) -> None:
    (number,) = evaluate(engine, imported(engine))
    with pytest.raises(NotFound, match=f"job {number} is an evaluation, of sae:1") as told:
        results.find_saes(engine, [str(number)])
    assert told.value.hint == "orch results sae:1"


def test_an_imported_sae_is_evaluated_in_a_sweep_made_for_it(engine: Engine) -> None:
    number = imported(engine)
    assert queue.evaluate(engine, BOTH, [number], dry_run=True)[0].is_new
    assert results.sweeps(engine) == []
    evaluate(engine, number)
    taken = take(engine)
    assert (taken.sweep, taken.evaluated and taken.evaluated.label) == ("evaluations", "sae:scope")


def test_what_cannot_be_measured_is_said_and_the_others_are_queued(engine: Engine) -> None:
    numbers = [
        imported(engine, "good"),
        imported(engine, "coder", target_hook_point="mlp.out"),
        imported(engine, "lost", subject=None),
    ]
    found = {one.label: one.refused for one in queue.evaluate(engine, BOTH, numbers)}
    assert [label for label, why in found.items() if not why] == ["sae:good"]
    assert "transcoder" in found["sae:coder"]
    assert "which model" in found["sae:lost"]
    assert len(evaluations(engine)) == 1


def test_evaluations_of_one_model_and_text_share_a_process_and_none_with_a_training(engine: Engine) -> None:
    enqueue(engine, 3)
    for _ in range(2):
        train(engine)
    evaluate(engine, 1, 2)
    trained = claim(engine)
    assert trained.kind == "train"
    assert companion(engine, trained) is None
    first = take(engine)
    second = companion(engine, first)
    assert second is not None
    assert (second.kind, second.lease.job_id, second.evaluated and second.evaluated.label) == ("evaluate", 5, "2")
    assert companion(engine, first) is None


def test_scores_are_stored_once_whoever_tells_them(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1)
    lease = take(engine).lease
    assert record(engine, lease, "reconstruction", score("fvu", 0.25, std_error=0.01, n=100, variant="first"))
    assert not record(engine, lease, "reconstruction", score("fvu", 0.75), score("l0"))
    assert scores(engine) == {(job_id, "fvu", "first"): 0.25}
    lose(engine, job_id)
    later = take(engine)
    assert later.measured == ("reconstruction",)
    assert not record(engine, later.lease, "reconstruction", score("fvu", 0.75))
    with pytest.raises(LeaseLost):
        record(engine, lease, "downstream")
    with pytest.raises(LeaseLost):
        queue.record_failed_family(engine, lease, "downstream", "no")
    with pytest.raises(LeaseLost):
        queue.finish_evaluation(engine, lease, 1.0)
    with pytest.raises(LeaseLost):
        queue.begin_evaluation(engine, lease, {})
    assert scores(engine) == {(job_id, "fvu", "first"): 0.25}
    with reading(engine) as session:
        row = session.execute(select(ScoreRow.sae_id, ScoreRow.sae_attempt, ScoreRow.n, ScoreRow.seed)).one()
    assert tuple(row) == (1, 1, 100, 0)


def test_what_is_not_finite_is_null_in_values_and_details(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    evaluate(engine, 1)
    lease = take(engine).lease
    details = {"bins": [1.0, float("nan")], "token": "\0a\ud800", "k": {2: float("inf")}}
    record(engine, lease, "reconstruction", score("fvu", float("nan"), low=float("-inf"), details=details))
    with reading(engine) as session:
        row = session.execute(select(ScoreRow.value, ScoreRow.low, ScoreRow.details)).one()
    assert (row.value, row.low, row.details) == (None, None, {"bins": [1.0, None], "token": "␀a?", "k": {"2": None}})


def test_an_evaluation_succeeds_when_every_family_is_measured_and_finishing_twice_is_once(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1)
    lease = take(engine).lease
    for family in BOTH.metrics:
        record(engine, lease, family)
    assert queue.finish_evaluation(engine, lease, 3.0) == "succeeded"
    assert queue.finish_evaluation(engine, lease, 3.0) == "succeeded"
    assert events(engine, job_id) == ["enqueued", "claimed", "measured", "measured", "succeeded"]
    assert [one.outcome for one in results.attempts(engine, job_id)] == ["evaluated"]


def test_a_family_that_fails_leaves_the_others_and_a_retry_measures_it_alone(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1, plan=EvaluationPlan(metrics=("reconstruction", "probes", "n2g")))
    lease = take(engine).lease
    record(engine, lease, "reconstruction")
    queue.record_failed_family(engine, lease, "probes", "every label is the same\nmore")
    queue.record_failed_family(engine, lease, "reconstruction", "too late: it is measured")
    assert queue.finish_evaluation(engine, lease, 3.0) == "failed"
    assert queue.finish_evaluation(engine, lease, 3.0) == "failed"
    assert job(engine, job_id).reason == "probes: every label is the same; n2g: was not measured"
    assert families(engine, job_id) == {"reconstruction": "measured", "probes": "failed"}
    assert nothing_to_claim(engine), "it is not tried again by itself"
    queue.retry(engine, [job_id])
    again = take(engine)
    assert again.measured == ("reconstruction",)
    record(engine, again.lease, "probes")
    record(engine, again.lease, "n2g")
    assert queue.finish_evaluation(engine, again.lease, 1.0) == "succeeded"
    assert set(scores(engine)) == {(job_id, name, "") for name in ("reconstruction", "probes", "n2g")}


def test_what_was_wished_meanwhile(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1)
    lease = take(engine).lease
    queue.cancel(engine, [job_id])
    assert queue.heartbeat(engine, lease, lease_seconds=60.0) == "cancel"
    assert queue.finish_evaluation(engine, lease, 1.0) == "cancelled", "nothing was measured, and nothing is wanted"
    queue.retry(engine, [job_id])
    lease = take(engine).lease
    queue.pause(engine, [job_id])
    assert queue.release(engine, lease, outcome="paused") == "paused"
    queue.resume(engine, [job_id])
    lease = take(engine).lease
    assert queue.hand_back(engine, lease, error="disk full") == "queued"
    assert job(engine, job_id).failures == 0
    with pytest.raises(StateError, match="is an evaluation"):
        queue.extend(engine, [job_id], max_tokens=10**9)


def test_a_sweep_that_says_so_has_each_sae_evaluated_once_it_is_trained(engine: Engine) -> None:
    queue.enqueue(engine, replace(sweep(2), evaluation=BOTH))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(100)])
    done = result(artifact_uri="/away/1/1/final")
    assert evaluations(engine) == []
    assert queue.finish(engine, lease, done) == 3
    assert queue.finish(engine, lease, done) is None, "its commit's answer was lost: nothing is there twice"
    assert (evaluations(engine), events(engine, 3)) == ([3], ["enqueued"])
    train(engine, artifact=None, outcome="diverged")
    assert evaluations(engine) == [3], "there is no SAE of a job that diverged"
    assert job(engine, 3).sae_id == 1


def test_a_plan_that_cannot_be_read_or_met_never_keeps_a_job_from_finishing(engine: Engine) -> None:
    queue.enqueue(engine, replace(sweep(2), evaluation=BOTH))
    with transaction(engine) as session:
        session.execute(update(SweepRow).values(evaluation='{"metrics": ["unheard_of"]}'))
    train(engine)
    assert (state(engine, 1), events(engine, 1)[-2:], evaluations(engine)) == (
        "succeeded",
        ["not_evaluated", "succeeded"],
        [],
    )


def test_a_plan_given_later_reaches_what_is_trained_already(engine: Engine) -> None:
    enqueue(engine, 2)
    train(engine)
    added = queue.enqueue(engine, replace(sweep(2), evaluation=BOTH))
    assert (added.added, added.evaluations) == (0, (3,))
    assert queue.enqueue(engine, replace(sweep(2), evaluation=BOTH)).evaluations == ()
    train(engine)
    assert evaluations(engine) == [3, 4]
    queue.enqueue(engine, sweep(3))
    run(engine)
    run(engine)
    train(engine)
    assert evaluations(engine) == [3, 4], "the file says nothing of evaluations any more"


def test_a_job_that_is_extended_is_evaluated_anew_and_its_old_evaluation_is_given_up(engine: Engine) -> None:
    (config,) = sweep(1).configs
    config = config.model_copy(update={"training": config.training.model_copy(update={"max_tokens": 4096})})
    queue.enqueue(engine, Sweep("s", (config,), evaluation=BOTH))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(4096, 0.5)])
    queue.checkpointed(engine, lease, ref(4096))
    assert queue.finish(engine, lease, result(outcome="max_tokens", artifact_uri="/away/1/1/final")) == 2
    queue.extend(engine, [1], max_tokens=8192)
    (asked,) = queue.evaluate(engine, BOTH, [1])
    assert "trained further" in asked.refused
    lease = claim(engine).lease
    assert lease.job_id == 1
    queue.record(engine, lease, [point(8192, 0.25)])
    assert queue.finish(engine, lease, result(outcome="max_tokens", artifact_uri="/away/1/2/final")) == 3
    taken = take(engine)
    assert taken.lease.job_id == 3
    assert isinstance(taken.config, EvaluationConfig)
    assert taken.config.sae.attempt == 2
    assert (state(engine, 2), job(engine, 2).reason) == (
        "failed",
        "job 1 has been trained further since: orch evaluate 1",
    )


def test_workers_of_before_take_no_evaluation(engine: Engine) -> None:
    """Such a worker reads the config as that of a training, and fails the job for good; none starts any more."""
    enqueue(engine)
    train(engine)
    workers.report(engine, WORKER, token="a", version="1", every_seconds=10.0)
    evaluate(engine, 1)
    with transaction(engine) as session:
        session.execute(update(WorkerRow).values(schema=None))
    with pytest.raises(StateError, match="earlier version"):
        queue.evaluate(engine, BOTH, [1], again=True)
    with pytest.raises(StateError, match="earlier version"):
        queue.enqueue(engine, replace(sweep(5, name="new"), evaluation=BOTH))
    assert queue.evaluate(engine, BOTH, [1], dry_run=True)[0].job_id == 2
    assert [one.name for one in results.sweeps(engine)] == ["s"], "nothing was added"
    workers.sign_off(engine, "a")
    assert len(evaluate(engine, 1, again=True)) == 1


def test_scores_go_with_their_jobs_and_their_saes(engine: Engine) -> None:
    enqueue(engine, 2)
    train(engine)
    train(engine)
    number = imported(engine)
    evaluate(engine, 1, 2, number)
    for _ in range(3):
        run(engine)
    running = evaluate(engine, 1, number, again=True)
    lease = take(engine).lease
    with pytest.raises(StateError, match=f"being evaluated: cancel job {running[0]} first"):
        queue.delete_jobs(engine, [1])
    queue.release(engine, lease)
    queue.delete_jobs(engine, [1])
    assert {job_id for job_id, _, _ in scores(engine)} == {4, 5}
    assert [job(engine, i).hidden for i in (1, 3, running[0])] == ["deleted"] * 3
    queue.delete_jobs(engine, [4])
    assert {job_id for job_id, _, _ in scores(engine)} == {5}
    queue.remove_sae(engine, number)
    assert scores(engine) == {}
    assert [(job(engine, i).hidden, job(engine, i).sae_id) for i in (5, running[1])] == [("deleted", None)] * 2
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(MeasuredFamily)) == 0
    assert [entry.label for entry in saes.entries(engine)] == ["2"]
    assert nothing_to_claim(engine)


def test_an_evaluation_of_another_version_fails_and_says_why(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    (job_id,) = evaluate(engine, 1)
    stored = json.loads(job(engine, job_id).config)
    stored["plan"]["metrics"] = ["unheard_of"]
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(config=json.dumps(stored)))
    assert nothing_to_claim(engine)
    assert "not valid here" in (job(engine, job_id).reason or "")


def test_a_report_shows_the_newest_scores_of_evaluations_that_are_not_hidden(engine: Engine) -> None:
    enqueue(engine)
    trained = train(engine)
    shown = {}
    for value in (0.25, 0.75):
        evaluate(engine, 1, again=True)
        lease = take(engine).lease
        record(engine, lease, "reconstruction", score("fvu", value))
        record(engine, lease, "downstream")
        queue.finish_evaluation(engine, lease, 1.0)
        shown[value] = lease.job_id
    assert sweep_scores(engine, ["s"]).by_job[trained]["fvu"].value == 0.75
    queue.hide_jobs(engine, [shown[0.75]])
    assert sweep_scores(engine, ["s"]).by_job[trained]["fvu"].value == 0.25
    queue.hide_jobs(engine, [shown[0.25]])
    assert sweep_scores(engine, ["s"]).by_job == {}


def test_a_report_compares_scores_of_one_text(engine: Engine) -> None:
    enqueue(engine, 2)
    trained = [train(engine), train(engine)]

    def measure(sae: int, value: float, text: str) -> None:
        evaluate(engine, sae, again=True)
        lease = take(engine).lease
        found = [score("fvu", value)]
        queue.record_scores(engine, lease, "reconstruction", found, wall_seconds=1.0, tokens=4096, measured_on=text)
        record(engine, lease, "downstream")
        queue.finish_evaluation(engine, lease, 1.0)

    measure(1, 0.1, "a.txt")
    measure(2, 0.2, "a.txt")
    measure(1, 0.9, "b.txt")
    found = sweep_scores(engine, ["s"])
    assert [found.by_job[job_id]["fvu"].value for job_id in trained] == [0.1, 0.2], (
        "not the newest, which is of one SAE"
    )
    assert found.texts["reconstruction"] == "4,096 tokens of a.txt"
    measure(2, 0.8, "b.txt")
    assert sweep_scores(engine, ["s"]).by_job[trained[0]]["fvu"].value == 0.9, "of two texts that all have, the last"


def test_a_report_has_the_heat_maps_that_it_draws_and_no_other_details(engine: Engine) -> None:
    enqueue(engine)
    trained = train(engine)
    evaluate(engine, 1, again=True)
    lease = take(engine).lease
    heat_map = {"heat_map": {"layers": [0, 1], "latents": 1, "values": [[1.0], [0.0]]}}
    found = [score("layer_mean", details=heat_map), score("layer_mean", variant="counts", details={"large": 1})]
    found.append(score("n2g_f1", details={"large": 1}))
    queue.record_scores(engine, lease, "reconstruction", found, wall_seconds=1.0, tokens=4096, measured_on="a.txt")
    record(engine, lease, "downstream")
    queue.finish_evaluation(engine, lease, 1.0)
    details = sweep_scores(engine, ["s"]).details
    assert details == {trained: {"layer_mean": heat_map | {"measured_on": "a.txt"}}}
