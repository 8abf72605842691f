"""Scores as they are read: of what they are, and which stand side by side."""

from dataclasses import replace

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.evaluation.changed_options import changed_options
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.probes import Pooling, ProbesOptions
from orchestrator.config.validation import parse
from orchestrator.evaluation.job_scores import sweep_scores
from orchestrator.evaluation.scores import scores, wide
from tests.evaluation_shorthand import evaluate, record, run, score, take, train
from tests.queue_shorthand import enqueue, sweep


def test_a_row_of_results_is_of_one_number_of_tokens(engine: Engine) -> None:
    enqueue(engine)
    train(engine)
    for tokens, scored in ((4096, {"delta_ce": 0.9, "kl": 0.8}), (128, {"delta_ce": 1.1}), (4096, {"delta_ce": 0.7})):
        evaluate(engine, 1, again=True)
        lease = take(engine).lease
        found = [score(name, value) for name, value in scored.items()]
        queue.record_scores(engine, lease, "downstream", found, wall_seconds=1.0, tokens=tokens, measured_on="a.txt")
        record(engine, lease, "reconstruction")
        queue.finish_evaluation(engine, lease, 1.0)
    rows = wide(scores(engine, metrics=["downstream"]))
    assert [(row["tokens"], row["delta_ce"], row["kl"]) for row in rows] == [(128, 1.1, None), (4096, 0.7, 0.8)]


def test_scores_are_in_the_order_of_the_jobs_that_trained_their_saes(engine: Engine) -> None:
    enqueue(engine, 2)
    queue.pause(engine, [1])
    assert train(engine) == 2
    queue.resume(engine, [1])
    assert train(engine) == 1
    for number in (1, 2):
        evaluate(engine, number)
        run(engine)
    assert [row["sae"] for row in wide(scores(engine))] == ["1", "2"]
    assert [row["sae"] for row in wide(scores(engine, ["s"]))] == ["1", "2"]


def test_scores_of_other_options_stand_in_other_rows(engine: Engine) -> None:
    """The mean of a word's tokens is another probe than its last token: neither takes the other's place."""
    enqueue(engine)
    train(engine)
    mean = {"pooling": "mean", "bootstraps": 10}
    for options, loss in (({}, 0.5), (mean, 0.4), ({"k": [1]}, 0.6), (mean | {"bootstraps": 20}, 0.3)):
        plan = EvaluationPlan.model_validate({"metrics": ["probes"], "probes": options})
        evaluate(engine, 1, plan=plan)
        lease = take(engine).lease
        record(engine, lease, "probes", score("probe_loss", loss))
        queue.finish_evaluation(engine, lease, 1.0)
    found = wide(scores(engine))
    assert [(row["measured_with"], row["probe_loss"]) for row in found] == [("", 0.6), ("probes.pooling=mean", 0.3)]
    assert [row["measured_with"] for row in wide(scores(engine, replaced=True))] == ["", "probes.pooling=mean"]


def test_a_report_shows_scores_of_the_options_that_most_saes_have(engine: Engine) -> None:
    enqueue(engine, 2)
    trained = [train(engine), train(engine)]

    def measure(sae: int, loss: float, pooling: Pooling) -> None:
        evaluate(engine, sae, plan=EvaluationPlan(metrics=("probes",), probes=ProbesOptions(pooling=pooling)))
        lease = take(engine).lease
        how = {"wall_seconds": 1.0, "tokens": 64, "measured_on": "a.txt"}
        queue.record_scores(engine, lease, "probes", [score("probe_loss", loss)], **how)  # type: ignore[arg-type]
        queue.finish_evaluation(engine, lease, 1.0)

    measure(1, 0.5, "mean")
    measure(2, 0.4, "mean")
    measure(1, 0.1, "max")
    found = sweep_scores(engine, ["s"])
    assert [found.by_job[job_id]["probe_loss"].value for job_id in trained] == [0.5, 0.4]
    assert found.texts["probes"] == "64 tokens of a.txt; probes.pooling=mean"


def test_scores_of_another_part_of_a_text_stand_in_other_rows(engine: Engine) -> None:
    """Of the first 5,000 tokens of a text another end is held out than of its first 9,000."""
    for limit in (5000, 9000):
        config = parse({"data": {"max_tokens": limit}, "sae": {"n_latents": 64}})
        queue.enqueue(engine, replace(sweep(name=f"of {limit}"), configs=(config,)))
        train(engine)
    for number in (1, 2):
        evaluate(engine, number)
        run(engine)
    found = [row["measured_with"] for row in wide(scores(engine))]
    assert found == ["data.max_tokens=5000", "data.max_tokens=9000"]


def test_options_are_told_as_they_are_typed() -> None:
    tasks = ["python:stdlib/in_comment", {"source": "a.csv", "label_column": "kind"}]
    plan = {"metrics": ["probes"], "probes": {"tasks": tasks, "ridge": 0.5}, "n2g": {"latents": list(range(50))}}
    asked = {"plan": EvaluationPlan.model_validate(plan).model_dump(mode="json"), "data": {"source": "b.txt"}}
    told = changed_options(asked)
    assert told["probes"] == 'probes.ridge=0.5, probes.tasks=python:stdlib/in_comment a.csv{"label_column":"kind"}'
    assert told["n2g"].startswith("n2g.latents=[0,1,2,3,")
    assert len(told["n2g"]) < 100
    assert told["downstream"] == ""
