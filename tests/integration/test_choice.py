"""What a list of jobs is filtered and sorted by in the database is what plain Python makes of whole rows."""

from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.config.flat_keys import flatten
from orchestrator.config.validation import parse
from orchestrator.results.choice import Choice, choose
from orchestrator.results.rows import JobRow
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, point, result

LRS = (0.001, 1.0, "auto", 1e-05)
SHORT = {"n": "n_latents", "t": "tokens_to_convergence", "dead": "dead_share"}
SORTS = (
    "id", "state", "priority", "seed", "k", "n", "lr", "fvu", "l0", "tokens_seen", "tokens_to_convergence", "outcome",
    "age", "finished_at", "worker", "reason", "dead", "passes", "sweep", "max_tokens", "sae.k", "optimizer.lr",
    "config_id", "training.seed", "subject.hook", "data.prepend_bos", "sae.activation",
)  # fmt: skip
WHERES: tuple[dict[str, list[Any]], ...] = (
    {"sae.k": [4]}, {"sae.k": [4.0, 99]}, {"optimizer.lr": [1]}, {"optimizer.lr": ["auto", 0.00001]},
    {"subject.hook": [None]}, {"data.prepend_bos": [True]}, {"data.prepend_bos": [0]},
    {"optimizer.betas": [[0.9, 0.99]]}, {"sae.k": [4], "optimizer.lr": [0.001]},
    {"subject.hook": ["h.3"]}, {"data.source": ["nowhere"]},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _jobs(engine: Engine) -> None:
    """Twenty-four jobs, some of which have ended, one running, and one with nothing to sort by."""
    configs = [
        parse({"subject": {"hook": "h.3" if at % 5 == 0 else None}, "data": {"prepend_bos": at % 7 == 0},
               "sae": {"n_latents": 512, "k": (4, 8, 16)[at % 3]}, "training": {"seed": at},
               "optimizer": {"lr": LRS[at % 4], "betas": (0.9, 0.99 if at % 6 == 0 else 0.999)}})
        for at in range(24)
    ]  # fmt: skip
    queue.enqueue(engine, Sweep("first", tuple(configs[:16]), labels={"of": "one"}))
    queue.enqueue(engine, Sweep("second", tuple(configs[16:])), priority=3)
    for at in range(14):
        lease = claim(engine).lease
        queue.begin(engine, lease, {"lr": 0.01 * (at % 3), "d_model": 64, "n_latents": 512}, 0)
        queue.record(engine, lease, [point(100, 0.5 - 0.01 * (at % 4), l0=float(4 + at % 2), dead_share=0.01 * at)])
        if at == 5:
            queue.fail(engine, lease, error="x", exit_code=70, outcome="internal", retry=False)
        elif at < 13:
            queue.finish(engine, lease, result(outcome="max_tokens"))
    queue.cancel(engine, [15])


class Whole(NamedTuple):
    """Every job, and the config of each."""

    rows: list[JobRow]
    configs: dict[int, dict[str, Any]]


@pytest.fixture
def whole(engine: Engine, _jobs: None) -> Whole:
    rows = results.jobs(engine)
    return Whole(rows, {row.id: flatten(results.config(engine, row.id)) for row in rows})


def plainly(whole: Whole, choice: Choice) -> list[int]:
    rows, configs = whole

    def value(row: JobRow, key: str) -> Any:
        return configs[row.id].get(key) if "." in key else getattr(row, SHORT.get(key, key))

    def rank(row: JobRow) -> tuple[bool, float, str]:
        told = value(row, sort)
        is_number = isinstance(told, int | float)
        return not is_number, float(told) if is_number else 0.0, str(told)

    kept = [row for row in rows if all(value(row, key) in among for key, among in choice.where.items())]
    kept = [row for row in kept if choice.labels.items() <= row.labels.items()]
    sort = choice.sort.removeprefix("-")
    if sort:
        known = [row for row in kept if value(row, sort) is not None]
        known.sort(key=rank, reverse=choice.sort.startswith("-"))
        kept = [*known, *(row for row in kept if value(row, sort) is None)]
    return [row.id for row in kept]


def test_sorted_as_plain_python_sorts(engine: Engine, whole: Whole) -> None:
    for choice in (Choice(sort=sign + sort) for sort in SORTS for sign in ("", "-")):
        expected = plainly(whole, choice)
        assert [row.id for row in choose(engine, choice)] == expected, choice.sort
        for limit in (7, 23):
            assert [row.id for row in choose(engine, choice, limit=limit)] == expected[:limit], (choice.sort, limit)


def test_filtered_as_plain_python_filters(engine: Engine, whole: Whole) -> None:
    for where in WHERES:
        choice = Choice(where=where, sort="-fvu")
        assert [row.id for row in choose(engine, choice)] == plainly(whole, choice), where
        labelled = Choice(where=where, labels={"of": "one"})
        assert [row.id for row in choose(engine, labelled)] == plainly(whole, labelled), where


def test_among_given_jobs_and_states(engine: Engine) -> None:
    ended = [row.id for row in results.jobs(engine) if row.state == "succeeded"]
    assert [row.id for row in choose(engine, Choice(sort="-id"), states=["succeeded"])] == ended[::-1]
    assert [row.id for row in choose(engine, Choice(sort="-id"), ids=[3, 1, 2], limit=2)] == [3, 2]
