"""Scores as they are read: of what they are, and which stand side by side."""

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.evaluation.scores import scores, wide
from tests.evaluation_shorthand import evaluate, record, score, take, train
from tests.queue_shorthand import enqueue


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
