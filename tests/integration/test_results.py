"""The read side: rows, reasons, totals, and what a person types."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.display.columns import job_columns, remaining, swept_cell
from orchestrator.config.validation import parse
from orchestrator.errors import NotFound
from orchestrator.formatting import NONE
from orchestrator.results import varied_keys
from orchestrator.results.job_rows import span
from orchestrator.sweep.sweep import Limits, Sweep
from tests.queue_shorthand import attempt, claim, enqueue, fail, lose, point, ref, result, run_out, sweep


def test_an_empty_database(engine: Engine) -> None:
    assert results.jobs(engine) == []
    assert results.sweeps(engine) == []
    assert results.workers(engine) == []
    assert set(results.counts(engine).values()) == {0}
    assert results.curve(engine, 1) == []


def test_a_running_job(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine, seconds=90.0).lease
    queue.begin(engine, lease, {"n_latents": 64, "d_model": 16}, 0)
    queue.record(engine, lease, [point(10, 0.5), point(20, 0.4, dead_share=0.125, l0=31.0, wall_seconds=3.0)])
    queue.heartbeat(engine, lease, lease_seconds=90.0, tokens_seen=27, tokens_per_second=100.0)
    (row,) = results.jobs(engine)
    assert (row.id, row.sweep, row.state, row.attempt, row.labels) == (1, "s", "running", 1, {"lab": "l"})
    assert (row.tokens_seen, row.tokens_per_second, row.fvu) == (27, 100.0, 0.4)
    assert (row.dead_share, row.l0, row.wall_seconds, row.d_model) == (0.125, 31.0, 3.0, 16)
    assert (row.worker, row.reason, row.outcome) == ("w1", None, None)
    assert row.lease_left is not None
    assert 60 < row.lease_left <= 90
    assert 0 <= row.age < 60
    assert row.started_at is not None


def test_a_running_job_says_where_its_curve_will_settle(engine: Engine) -> None:
    sizes: dict[str, Any] = {
        "batch_tokens": 256,
        "shuffle_tokens": 1024,
        "max_tokens": 2**24,
        "first_point_tokens": 8192,
    }
    plateau, whole = (
        parse({"sae": {"n_latents": 64}, "training": sizes, "stop": {"rule": rule, "epsilon": 0.02}})
        for rule in ("plateau", "max_tokens")
    )
    queue.enqueue(engine, Sweep("s", (plateau, whole)))
    for _ in range(2):
        lease = claim(engine).lease
        grid = [8192 * 2 ** (i // 4) for i in range(0, 28, 4)]
        queue.record(engine, lease, [point(t, 0.3 + 0.5 * (t / 8192) ** -0.7) for t in grid])
    settling, spending = results.jobs(engine)
    assert settling.expected_tokens is None, "three points in two doublings are too few"
    for lease_of in (1, 2):
        lease = queue.Lease(lease_of, 1, attempt(engine, lease_of, 1).token)
        more = [int(2**18 * 2 ** (i / 4) / 256) * 256 for i in range(12)]
        queue.record(engine, lease, [point(t, 0.3 + 0.5 * (t / 8192) ** -0.7) for t in more if t > grid[-1]])
    settling, spending = results.jobs(engine)
    assert settling.expected_tokens is not None
    assert grid[-1] < settling.expected_tokens < 2**24
    assert spending.expected_tokens is None
    for lease_of in (1, 2):
        lease = queue.Lease(lease_of, 1, attempt(engine, lease_of, 1).token)
        queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=2**21, tokens_per_second=1000.0)
    eta, budget = (remaining(row) for row in results.jobs(engine))
    assert eta == (settling.expected_tokens - 2**21) / 1000
    assert budget == (2**24 - 2**21) / 1000
    queue.finish(engine, queue.Lease(1, 1, attempt(engine, 1, 1).token), result())
    assert results.jobs(engine, ids=[1])[0].expected_tokens is None


def test_a_finished_job(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.record(engine, lease, [point(10 * at, 0.5 + 1 / at) for at in range(1, 9)])
    queue.finish(engine, lease, result(tokens_seen=80, artifact_uri="file:///x"))
    (row,) = results.jobs(engine)
    assert (row.tokens_seen, row.fvu, row.outcome, row.untrained_fvu) == (80, 0.625, "converged", 0.9)
    assert (row.artifact_uri, row.lease_left, row.tokens_per_second) == ("file:///x", None, None)
    assert len(results.convergence(engine, 1)) == 4
    at_one_percent = next(c for c in results.convergence(engine, 1) if c.epsilon == 0.01)
    assert (row.tokens_to_convergence, row.tokens_lower_bound) == (at_one_percent.tokens, at_one_percent.lower_bound)
    (measured,) = results.measured(engine, ["s"])
    assert measured.tokens_interval == {
        one.epsilon: (one.low, one.high) for one in results.convergence(engine, 1) if one.tokens is not None
    }


def test_why_a_job_is_not_running(engine: Engine) -> None:
    def reason(job_id: int) -> str | None:
        return results.jobs(engine, ids=[job_id])[0].reason

    enqueue(engine, 4, name="a", max_parallel=1)
    enqueue(engine, 1, name="b")
    assert reason(1) == "NoWorker"
    claim(engine)
    assert reason(2) == "SweepCap(1/1)"
    assert reason(5) == "Priority"
    run_out(engine, 1)
    assert reason(5) == "NoWorker"
    queue.pause_sweep(engine, 2)
    assert reason(5) == "SweepPaused"
    queue.pause(engine, [1, 2])
    assert reason(1) == "Pausing"
    assert reason(2) == "Paused"
    queue.cancel(engine, [1, 3])
    assert reason(1) == "Cancelling"
    assert reason(3) == "cancelled by hand"
    lose(engine, 1)
    fail(engine, claim(engine).lease, retry=False, reason="bad")
    assert reason(4) == "bad"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59.4, "59s"), (59.6, "1m"), (240, "4m"), (7200, "2h"), (200_000, "2d")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_choosing_jobs(engine: Engine) -> None:
    enqueue(engine, 3, name="a")
    enqueue(engine, 2, name="b")
    claim(engine)

    def ids(**how: object) -> list[int]:
        return [row.id for row in results.jobs(engine, **how)]  # type: ignore[arg-type]

    assert ids() == [1, 2, 3, 4, 5]
    assert ids(sweep="b") == [4, 5]
    assert ids(sweep="none") == []
    assert ids(states=["running"]) == [1]
    assert ids(states=["queued", "running"], sweep="a") == [1, 2, 3]
    assert ids(ids=[5, 2, 99]) == [2, 5]
    assert ids(ids=[]) == []
    assert ids(limit=2) == [1, 2]


def test_totals(engine: Engine) -> None:
    enqueue(engine, 3, name="a", max_parallel=4)
    enqueue(engine, 1, name="b")
    claim(engine)
    queue.cancel(engine, [2])
    one, two = results.sweeps(engine)
    zero = dict.fromkeys(results.counts(engine), 0)
    assert one.counts == zero | {"running": 1, "cancelled": 1, "queued": 1}
    assert (one.name, one.jobs, one.max_parallel, two.jobs) == ("a", 3, 4, 1)
    assert results.counts(engine) == zero | {"running": 1, "cancelled": 1, "queued": 2}
    assert results.counts(engine, sweep="b") == zero | {"queued": 1}
    (worker,) = results.workers(engine)
    assert (worker.worker, worker.job_id, worker.sweep, worker.attempt) == ("w1", 1, "a", 1)


def test_the_history_of_a_job(engine: Engine) -> None:
    enqueue(engine)
    first = claim(engine).lease
    queue.checkpointed(engine, first, ref(10))
    queue.release(engine, first)
    claim(engine)
    assert [(a.attempt, a.outcome) for a in results.attempts(engine, 1)] == [(1, "preempted"), (2, None)]
    assert [(c.tokens_seen, c.attempt, c.uri) for c in results.checkpoints(engine, 1)] == [(10, 1, "at/10")]
    kinds = [(e.kind, e.attempt) for e in results.events(engine, 1)]
    assert kinds == [("enqueued", None), ("claimed", 1), ("checkpoint", 1), ("queued", 1), ("claimed", 2)]
    assert results.config(engine, 1)["sae"]["n_latents"] == 64
    with pytest.raises(NotFound):
        results.config(engine, 9)


def test_what_a_person_types(engine: Engine) -> None:
    enqueue(engine, 2, name="width-sweep")
    enqueue(engine, 1, name="12")
    assert results.find(engine, ["2", "width-sweep", " 1 "]) == [2, 1]
    assert results.find(engine, ["12"]) == [3]
    assert results.find(engine, []) == []
    with pytest.raises(NotFound, match="did you mean 'width-sweep'"):
        results.find(engine, ["1", "widht-sweep"])
    with pytest.raises(NotFound, match="there is no job 99; job ids go up to 3"):
        results.find(engine, ["99"])
    for odd in ("", "-1", "²", "9" * 30, "9" * 5000, "x'; --", "a b"):
        with pytest.raises(NotFound):
            results.find(engine, [odd])


def test_what_a_sweep_holds_already(engine: Engine) -> None:
    enqueue(engine, 3)
    queue.cancel(engine, [1])
    assert results.existing(engine, "s") == {config.config_id for config in sweep(3).configs[1:]}
    assert results.existing(engine, "other") == set()


def test_odd_names_and_labels(engine: Engine) -> None:
    name = "größe 100% 'x' \"y\"; 表"
    queue.enqueue(engine, Sweep(name, sweep(1).configs, {"ключ": "✓"}, Limits(), "τ"))
    assert results.find(engine, [name]) == [1]
    assert results.jobs(engine)[0].labels == {"ключ": "✓"}


def test_what_sets_jobs_of_a_sweep_apart(engine: Engine) -> None:
    places = [{"layer": 3, "site": "resid_post"}, {"layer": 3, "site": "mlp_post"}, {"layer": 4, "site": "mlp_post"}]
    configs = tuple(parse({"subject": place, "sae": {"n_latents": 64 + at}}) for at, place in enumerate(places))
    queue.enqueue(engine, Sweep("places", configs))
    queue.enqueue(engine, Sweep("alone", (parse({"subject": {"layer": 5}}),)))
    named = [{f"subject.{key}": value for key, value in place.items()} for place in places]
    rows = results.jobs(engine)
    assert [row.swept for row in rows] == [*named, {}], "not n, which has a column, and not what another sweep has"
    assert [swept_cell(row, {}) for row in rows[1:]] == ["layer=3 site=mlp_post", "layer=4 site=mlp_post", NONE]
    assert [row.swept for row in results.jobs(engine, ids=[1, 2])] == [{"subject.site": p["site"]} for p in places[:2]]
    values = {"training.max_tokens": 4_256_768, "optimizer.lr": 0.00250, "optimizer.ema": None, "sae.tied": True}
    assert swept_cell(replace(rows[0], swept=values), {}) == "max_tokens=4_256_768 lr=0.0025 ema=null tied=true"
    seeds = {"training.seed": 1, "data.seed": 2, "subject.layer": 3}
    assert swept_cell(replace(rows[0], swept=seeds), {}) == "training.seed=1 data.seed=2 layer=3"
    titles = [{column.title for column in job_columns(shown, drawn=False)} for shown in (rows[:3], rows[3:])]
    assert ["SWEPT" in found for found in titles] == [True, False]


def test_what_all_begin_with_is_left_out_unless_there_is_room(engine: Engine) -> None:
    words = [f"synthetic:planted?d_model=64&exponent={at}" for at in (0.8, 1.5)]
    queue.enqueue(engine, Sweep("planted", tuple(parse({"subject": {"model": word}}) for word in words)))
    rows = results.jobs(engine)
    for wide in (False, True):
        [cell] = [one.cell for one in job_columns(rows, drawn=False, wide=wide) if one.title == "SWEPT"]
        told = ["model=…exponent=0.8&noise=0.01&seed=0", "model=…exponent=1.5&noise=0.01&seed=0"]
        assert [cell(row) for row in rows] == (
            [f"model={row.swept['subject.model']}" for row in rows] if wide else told
        )


def test_of_too_many_jobs_no_config_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied_keys, "MOST", 50)
    queue.enqueue(engine, sweep(51))
    assert {bool(row.swept) for row in results.jobs(engine)} == {False}
    assert results.jobs(engine, limit=2)[0].swept


def test_many_jobs_are_listed_quickly(sqlite_settings: object) -> None:
    import time

    from orchestrator.database.schema import open_database

    engine = open_database(sqlite_settings)  # type: ignore[arg-type]
    queue.enqueue(engine, sweep(5000))
    start = time.process_time()
    assert len(results.jobs(engine, limit=50)) == 50
    assert results.counts(engine)["queued"] == 5000
    assert time.process_time() - start < 0.2
    engine.dispose()
