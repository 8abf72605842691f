"""Fits in the database: read back as they were, superseded and never overwritten, on both databases."""

import json
import math
import threading
from dataclasses import asdict, replace

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.config.validation import parse
from orchestrator.database.engine import transaction
from orchestrator.database.models import FitRow
from orchestrator.errors import NotFound
from orchestrator.fits import store
from orchestrator.formatting import Interval
from orchestrator.scaling.types import Excluded, Fit, Residual, Score
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, enqueue, point, result

FIT = Fit(
    law="ln", sweeps=("s",), group="k=8", subject="m", form="+e", equation="fvu = exp(a + b·ln n) + e",
    coefficients={"b": Interval(-0.16, -0.17, -0.15), "a": Interval(0.4, 0.3, 0.5), "e": Interval(0.2, 0.1, 0.3)},
    scores=(Score("pure", 2, None, 0.02, None), Score("+e", 3, -57.8, 0.001, 0.004)), irreducible=(0.187, 0.21),
    residuals=(Residual((1, 2), 64.0, 8, "m", 0.5, 0.501, -0.002), Residual((3,), 128.0, 8, "m", 0.4, 0.4, 0.0, True)),
    excluded=(Excluded(4, "it diverged"),), holdout_error=0.004, holdout_jobs=(3,), seed_sigma=None,
    draws=((-0.16, 0.4, 0.2), (-0.161, 0.41, 0.19)), n_bootstrap=2000, notes=("a note",), drawn_form="+e",
    hook="layer 1, resid_post", data="a b", activation="topk",
    options={"epsilon": 0.01, "seed": 0, "loss": "fvu", "nothing": None},
)  # fmt: skip


def test_a_fit_comes_back_as_it_was(engine: Engine) -> None:
    [fit_id] = store.save(engine, [FIT])
    [found] = store.newest(engine, sweep="s")
    assert found.fit == FIT
    assert list(found.fit.coefficients) == ["b", "a", "e"], "the draws are in this order"
    assert found.fit.jobs == (1, 2, 3)
    assert (found.id, found.superseded_by, found.mlflow_run_id) == (fit_id, None, None)
    assert found.version
    assert found.commit is None or len(found.commit) >= 40
    assert found.created_at > 1.7e9
    assert json.dumps(FIT.values()) == json.dumps(asdict(FIT)), "as it was stored before, when all was copied"


def test_a_fit_of_an_earlier_version_says_not_what_was_drawn(engine: Engine) -> None:
    [fit_id] = store.save(engine, [FIT])
    with transaction(engine) as session:
        row = session.get_one(FitRow, fit_id)
        row.payload = {name: value for name, value in row.payload.items() if name != "drawn_form"}
    [found] = store.newest(engine, sweep="s")
    assert found.fit == replace(FIT, drawn_form="")


def test_a_newer_fit_supersedes_and_overwrites_nothing(engine: Engine) -> None:
    [first] = store.save(engine, [FIT])
    newer = replace(FIT, n_bootstrap=4000)
    [second] = store.save(engine, [newer])
    assert [one.id for one in store.newest(engine, sweep="s")] == [second]
    assert [(one.id, one.superseded_by) for one in store.history(engine, sweep="s")] == [
        (second, None),
        (first, second),
    ]
    assert [one.fit for one in store.history(engine, sweep="s")] == [newer, FIT]


@pytest.mark.parametrize(
    "other",
    [
        {"law": "tn"},
        {"sweeps": ("s", "t")},
        {"group": "k=16"},
        {"subject": "n"},
        {"hook": "layer 2, resid_post"},
        {"data": "other"},
        {"activation": "relu"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_differs_supersedes_nothing(engine: Engine, other: dict[str, object]) -> None:
    store.save(engine, [FIT, replace(FIT, **other)])  # type: ignore[arg-type]
    assert len(store.newest(engine, sweep="s")) == 2


def test_a_fit_of_an_earlier_version_that_named_no_hook_point_is_superseded(engine: Engine) -> None:
    """Stored as `k=8` while one layer alone had run; else it would stay in reports beside the new fit of that layer."""
    before = ("hook", "data", "activation")
    names = {"k=8": "k=8", "k=8, epsilon=0.02, hook=layer 1, resid_post, data=a b": "k=8, epsilon=0.02"}
    for old, group in names.items():
        [fit_id] = store.save(engine, [FIT])
        with transaction(engine) as session:
            row = session.get_one(FitRow, fit_id)
            row.payload = {key: value for key, value in row.payload.items() if key not in before} | {"group": old}
        [found] = store.newest(engine, sweep="s")
        assert found.fit.group == group
        assert (found.fit.hook, found.fit.data) == (("layer 1, resid_post", "a b") if "hook" in old else ("", ""))
        new = replace(FIT, group=group)
        other = replace(new, hook="layer 3, resid_post")
        kept = store.save(engine, [new, other])
        assert {one.id for one in store.newest(engine, sweep="s")} == set(kept)
        store.remove(engine, [one.id for one in store.history(engine, sweep="s")])


def test_a_fit_is_removed_and_the_one_before_it_stands_again(engine: Engine) -> None:
    first, second, third = (store.save(engine, [FIT])[0] for _ in range(3))
    assert [one.id for one in store.remove(engine, [second])] == [second]
    assert [(one.id, one.superseded_by) for one in store.history(engine, sweep="s")] == [(third, None), (first, third)]
    assert [one.id for one in store.remove(engine, [third])] == [third]
    assert [one.id for one in store.newest(engine, sweep="s")] == [first]
    with pytest.raises(NotFound, match="there is no fit 77, 78"):
        store.remove(engine, [first, 78, 77])
    assert [one.id for one in store.history(engine, sweep="s")] == [first], "nothing was removed"
    more = [store.save(engine, [FIT])[0] for _ in range(3)]
    store.remove(engine, [first, *more[1:]])
    assert [(one.id, one.superseded_by) for one in store.history(engine, sweep="s")] == [(more[0], None)]


def test_fits_are_found_by_sweep_and_law(engine: Engine) -> None:
    both = replace(FIT, sweeps=("t", "s"))
    store.save(engine, [replace(FIT, law="tn"), both, replace(FIT, sweeps=("st",))])
    assert [one.fit.law for one in store.newest(engine, sweep="s")] == ["ln", "tn"]
    assert [one.fit.sweeps for one in store.newest(engine, sweep="t")] == [("t", "s")]
    assert [one.fit.law for one in store.newest(engine, sweep="s", law="tn")] == ["tn"]
    assert store.newest(engine, sweep="%") == []


def test_two_at_once_leave_one_newest(engine: Engine) -> None:
    threads = [threading.Thread(target=store.save, args=(engine, [FIT] * 3)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = store.history(engine, sweep="s")
    assert len(kept) == 18
    assert [one.superseded_by for one in kept].count(None) == 1
    assert all((one.superseded_by or math.inf) > one.id for one in kept)


def test_where_a_fit_is_shown(engine: Engine) -> None:
    [fit_id] = store.save(engine, [FIT])
    store.shipped(engine, fit_id, mlflow_run_id="run")
    assert store.newest(engine, sweep="s")[0].mlflow_run_id == "run"
    with pytest.raises(NotFound, match="no fit 99"):
        store.shipped(engine, 99, mlflow_run_id="run")


def test_what_is_measured_of_jobs(engine: Engine) -> None:
    config = parse({"sae": {"n_latents": 64, "k": 8}, "optimizer": {"lr": "auto"}})
    queue.enqueue(engine, Sweep("s", (config,)))
    lease = claim(engine).lease
    facts = {
        "lr": 0.02, "n_latents": 64, "d_model": 32, "device": "cpu", "threads": 2,
        "subject": {"parameters_run": 1000, "parameters": 2000, "site": "resid_post of h.3"},
    }  # fmt: skip
    queue.begin(engine, lease, facts, 0)
    queue.record(engine, lease, [point(100, 0.9), point(200, math.nan), point(400, 0.5)])
    queue.finish(engine, lease, result(outcome="max_tokens", tokens_seen=400))
    [row] = results.measured(engine, ["s"])
    assert (row.lr, row.lr_is_auto, row.subject_size, row.hook) == (0.02, True, 1000, "resid_post of h.3")
    assert (row.state, row.outcome, row.fvu, row.tokens_seen, row.untrained_fvu) == (
        "succeeded",
        "max_tokens",
        0.5,
        400,
        0.9,
    )
    assert (row.subject, row.data, row.activation) == ("shipped:stdlib-gpt2", "python:stdlib", "topk")
    assert [p.tokens_seen for p in row.curve] == [100, 200, 400]
    assert math.isnan(row.curve[1].fvu)
    assert row.tokens_to_convergence == dict.fromkeys((0.002, 0.005, 0.01, 0.02))
    assert set(row.tokens_lower_bound.values()) == {400.0}
    assert results.measured(engine, ["s"], curves=False)[0].curve == ()


def test_a_job_that_waits_is_measured_too(engine: Engine) -> None:
    enqueue(engine, 2)
    enqueue(engine, 1, name="other")
    rows = results.measured(engine, ["s", "other", "s"])
    assert [(row.sweep, row.state, row.outcome, row.fvu, row.lr) for row in rows] == [
        ("s", "queued", None, None, None), ("s", "queued", None, None, None), ("other", "queued", None, None, None)
    ]  # fmt: skip


def test_a_job_that_waits_is_read_where_one_like_it_was(engine: Engine) -> None:
    """Or a sweep that still trains would be one of two hook points, and fitted as such."""
    sizes = [parse({"sae": {"n_latents": n}, "subject": {"layer": layer}}) for n, layer in ((64, 3), (128, 3), (64, 4))]
    queue.enqueue(engine, Sweep("s", tuple(sizes)))
    queue.begin(engine, claim(engine).lease, {"subject": {"site": "resid_post of h.3"}}, 0)
    hooks = [row.hook for row in results.measured(engine, ["s"])]
    assert hooks == ["resid_post of h.3", "resid_post of h.3", "layer 4, resid_post"]


def test_an_unknown_sweep_names_its_neighbours(engine: Engine) -> None:
    enqueue(engine, name="quickstart")
    with pytest.raises(NotFound, match="did you mean 'quickstart'"):
        results.measured(engine, ["quikstart"])
