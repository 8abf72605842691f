"""From jobs to points: which a law may use, which not and why; best and largest learning rates."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.errors import ConfigError, FitError
from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.fitting import fit, fit_laws
from orchestrator.scaling.fit.options import FitOptions, options_of
from orchestrator.scaling.fit.predict import band, predict
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.laws.registry import LAWS, law_named
from orchestrator.scaling.types import JobMeasurement, LawName
from tests.job_measurements import line, measured


def _samples(law: LawName, rows: Sequence[JobMeasurement], **values: Any) -> list[Sample]:
    options = FitOptions(**values)
    return LAWS[law].samples(*sort_out(LAWS[law], rows, options), options)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"state": "running", "outcome": None}, "it has not ended (running)"),
        ({"state": "queued", "outcome": None, "fvu": None}, "it has not ended (queued)"),
        ({"state": "failed", "outcome": None, "reason": "Boom"}, "it failed: Boom"),
        ({"state": "cancelled", "outcome": None}, "it was cancelled"),
        ({"outcome": "diverged"}, "it diverged"),
        ({"outcome": "not_learning"}, "not learning: its fvu stayed near that of untrained weights"),
        ({"outcome": "max_tokens"}, "not converged: it reached its budget of 1000 tokens"),
        ({"fvu": None}, "no curve is stored of it"),
        ({"fvu": math.nan}, "its last loss is not a number"),
        ({"fvu": 1.02}, "a dead SAE: fvu 1.02 is no better than the mean"),
        ({"fvu": 0.0}, "its loss is 0: nothing is left to be explained"),
        ({"n": None}, "its number of latents is not known: no attempt has told"),
    ],
)
def test_why_a_job_is_left_out(values: dict[str, Any], why: str) -> None:
    good, bad = measured(64), measured(**values)
    kept, excluded = sort_out(LAWS["ln"], [good, bad], FitOptions())
    assert kept == [good]
    assert [(one.job_id, one.why) for one in excluded] == [(bad.job_id, why)]


def test_a_law_over_k_ends_where_k_is_near_d_model() -> None:
    bad = measured(64, 32, d_model=64)
    assert sort_out(LAWS["lnk"], [bad], FitOptions())[1][0].why.startswith("k = 32 is above d_model / 4 = 16")
    assert sort_out(LAWS["ln"], [bad], FitOptions())[0] == [bad]


def test_the_same_config_counts_once() -> None:
    first = measured(64)
    again = measured(64, config_id=first.config_id)
    failed = measured(64, config_id="other", state="failed", outcome=None)
    instead = measured(64, config_id="other")
    kept, excluded = sort_out(LAWS["ln"], [first, again, failed, instead], FitOptions())
    assert kept == [first, instead], "a failed job takes nobody's place"
    assert excluded[0].why == f"the same config as job {first.job_id}"


def test_the_other_loss() -> None:
    row = measured(64, fvu=0.5, l_inf=0.45)
    assert _samples("ln", [row], loss="l_inf")[0].observations[0].value == 0.45
    assert _samples("ln", [row], loss="l_inf")[0].group == "k=8, loss=l_inf"
    assert _samples("ln", [row])[0].observations[0].value == 0.5
    assert (
        sort_out(LAWS["ln"], [measured(64, l_inf=None)], FitOptions(loss="l_inf"))[1][0].why == "its L∞ is not settled"
    )


@pytest.mark.parametrize(
    ("name", "plural"),
    [("subject", "subjects"), ("hook", "hook points"), ("data", "texts"), ("activation", "activations")],
)
def test_a_mixture_is_refused_and_says_how_to_choose(name: Any, plural: str) -> None:
    rows = [measured(n, 8, n**-0.2, **{name: value}) for value in ("one", "two") for n in (64, 128, 256)]
    with pytest.raises(
        FitError, match=rf"mix {plural}: one \(3 jobs, such as {rows[0].job_id}\); two \(3 jobs"
    ) as told:
        fit("ln", rows)
    assert told.value.hint.startswith(f"Choose one: --{name} 'one'")
    assert ("--law ls" in told.value.hint) == (name == "subject")
    [found] = fit("ln", rows, n_bootstrap=100, options=FitOptions(**{name: "two"}))  # type: ignore[arg-type]
    assert found.jobs == tuple(row.job_id for row in rows[3:])
    assert {one.why for one in found.excluded} == {f"another {name}: one"}
    assert found.group == "k=8", "a fit of these jobs alone has the same name"
    assert getattr(found, name) == "two"
    [alone] = fit("ln", rows[3:], n_bootstrap=100)
    assert (alone.group, getattr(alone, name)) == (found.group, "two")


def test_the_best_learning_rate_of_each_cell() -> None:
    rows = [
        measured(64, fvu=fvu, lr=lr, seed=seed) for lr, fvu, seed in ((0.01, 0.5, 0), (0.01, 0.52, 1), (0.02, 0.505, 0))
    ]
    [sample] = _samples("ln", rows)
    assert [one.jobs for one in sample.observations] == [(rows[2].job_id,)], "0.51 is the mean over seeds"
    assert sample.excluded[0].why == "not the best lr at n = 64, k = 8: lr 0.02 has fvu 0.505"


def test_every_k_has_a_sample_of_its_own() -> None:
    rows = [measured(n, k) for n in (64, 128) for k in (8, 16)]
    assert [(one.group, len(one.observations)) for one in _samples("ln", rows)] == [("k=8", 2), ("k=16", 2)]
    assert [(one.group, len(one.observations)) for one in _samples("lnk", rows)] == [("", 4)]


def test_a_fit_at_one_k_leaves_out_no_job_of_another() -> None:
    rows = [measured(n, k, fvu=n**-0.3) for n in (64, 128, 256, 512) for k in (4, 8)]
    bad = {k: measured(64, k, state="failed", outcome=None) for k in (4, 8, 16)}
    at_4, at_8 = fit("ln", [*rows, *bad.values()], n_bootstrap=10)
    untold = bad[16].job_id  # no fit of its own can tell of it
    assert {one.job_id for one in at_4.excluded} == {bad[4].job_id, untold}
    assert {one.job_id for one in at_8.excluded} == {bad[8].job_id, untold}


def test_where_the_largest_learning_rate_tried_converged_it_is_a_bound() -> None:
    rows = [measured(64, lr=lr, outcome=outcome) for lr, outcome in ((0.01, "converged"), (0.02, "converged"))]
    rows += [measured(128, lr=lr, outcome=outcome) for lr, outcome in ((0.01, "converged"), (0.02, "diverged"))]
    rows += [measured(256, lr=0.01)]
    [sample] = _samples("lr", rows)
    assert [(one.x, one.value, one.censored) for one in sample.observations] == [(64, 0.02, True), (128, 0.01, False)]
    assert sample.excluded[-1].why == "the only learning rate tried at its n"


def test_a_seed_that_does_not_converge_speaks_against_its_learning_rate() -> None:
    rows = [measured(64, lr=lr, outcome=outcome, seed=seed) for lr, outcome, seed in
            ((0.01, "converged", 0), (0.02, "converged", 0), (0.02, "max_tokens", 1))]  # fmt: skip
    assert _samples("lr", rows)[0].observations[0].value == 0.01


def test_predictions_and_bands() -> None:
    [found] = fit("ln", line((64, 128, 256, 512, 1024), e=0.0, noise=0.01))
    known = {one.x: one.predicted for one in found.residuals}
    for x, interval in zip(known, band(LAWS[found.law], found, list(known)), strict=True):
        assert interval.value == pytest.approx(known[x])
        assert interval.low < interval.value < interval.high
    near, far = predict(LAWS[found.law], found, x=256), predict(LAWS[found.law], found, x=2**20)
    assert far.high / far.low > near.high / near.low, "further away less is known"
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError):
            predict(LAWS[found.law], found, x=wrong)
    [over_k] = fit("lnk", [row for k in (8, 16) for row in line((64, 128, 256), k=k, e=0.0, noise=0.01)])
    with pytest.raises(ConfigError, match="needs k"):
        predict(LAWS[over_k.law], over_k, x=64)
    assert predict(LAWS[over_k.law], over_k, x=64, k=8).low > 0


def test_names_of_laws() -> None:
    assert law_named(" LNK ") == "lnk"
    with pytest.raises(ConfigError, match="no law 'lnq'; did you mean 'ln") as told:
        law_named("lnq")
    assert "ln = L(N)" in told.value.hint
    with pytest.raises(ConfigError, match=r"epsilon 0.3 is not stored"):
        options_of(epsilon=0.3, loss="fvu", flops="dense")


def test_what_is_missing_is_named_with_its_command() -> None:
    rows = [measured(64, lr=0.02), measured(128, lr=0.014, outcome="max_tokens")]
    with pytest.raises(FitError) as told:
        fit("ln", rows)
    assert "it has n = 64; missing: (n=128, k=8, lr=0.014), (n=256, k=8, lr=0.0099)" in told.value.message
    assert f"Left out: not converged (job {rows[1].job_id})" in told.value.message
    assert told.value.hint.splitlines() == [
        f"Train them on: orch extend {rows[1].job_id} --max-tokens 2000",
        "Supply them: orch enqueue FILE --name s sae.n_latents=256 sae.k=8 optimizer.lr=0.0099",
    ]


def test_what_is_missing_with_lr_auto() -> None:
    with pytest.raises(FitError, match=r"missing: \(n=128, k=8, lr=auto\), \(n=256, k=8, lr=auto\)") as told:
        fit("tn", [measured(64, lr_is_auto=True)])
    assert told.value.hint == "Supply them: orch enqueue FILE --name s sae.n_latents=128,256 sae.k=8 optimizer.lr=auto"


def test_the_rate_advised_is_the_best_of_those_that_learn() -> None:
    """A sweep of lr = 1e-6 beside `auto` was told to double the budget of the first."""
    idle = [measured(n, lr=1e-6, outcome="not_learning", fvu=1.1) for n in (64, 128)]
    slow, best = (measured(64, lr=lr, outcome="max_tokens", fvu=fvu) for lr, fvu in ((0.01, 0.36), (0.02, 0.33)))
    message, _ = _advice("ln", [*idle, slow, best])
    assert "missing: (n=64, k=8, lr=0.02), (n=128, k=8, lr=0.0141)" in message
    assert "missing: (n=64, k=8, lr=2e-06), (n=128, k=8, lr=2e-06)" in _advice("ln", idle)[0]
    by_rule = measured(64, lr=0.02, lr_is_auto=True, outcome="max_tokens", fvu=0.33)
    assert "missing: (n=64, k=8, lr=auto), (n=128, k=8, lr=auto)" in _advice("ln", [*idle, slow, by_rule])[0]


def test_jobs_on_their_way_are_waited_for_and_failed_ones_tried_again() -> None:
    rows = [measured(64), measured(128, state="running", outcome=None), measured(256, state="failed", outcome=None)]
    with pytest.raises(FitError) as told:
        fit("ln", rows)
    assert "1 of them has not ended: orch wait s" in told.value.hint
    assert f"orch retry {rows[2].job_id}" in told.value.hint


def _advice(law: LawName, rows: Sequence[JobMeasurement]) -> tuple[str, list[str]]:
    with pytest.raises(FitError) as told:
        fit(law, rows)
    return told.value.message, told.value.hint.splitlines()


def test_a_budget_is_doubled_once() -> None:
    """Jobs that used up a budget and twice that one were told to double it again, and so for ever."""
    known = [*line((64, 128), e=0.0), measured(256, outcome="max_tokens", fvu=0.4)]
    assert _advice("ln", known)[1] == [f"Train them on: orch extend {known[-1].job_id} --max-tokens 2000"]
    extended = measured(256, outcome="max_tokens", max_tokens=2000, first_max_tokens=1000)
    _, (told,) = _advice("ln", [*known[:-1], extended])
    assert f"job {extended.job_id} reached its budget, and one 2 times as large, too" in told
    decayed = measured(256, outcome="max_tokens", decay_tokens=100)
    assert _advice("ln", [*known[:-1], decayed])[1][0].endswith("training.max_tokens=2000")
    again = measured(256, outcome="max_tokens", max_tokens=2000, fvu=0.38)
    _, (told,) = _advice("ln", [*known, again])
    assert told.startswith(f"n = 256, k = 8: job {known[-1].job_id} reached its budget, and so did job {again.job_id}")
    assert "with 2 times as much, its fvu 5.0% lower" in told
    assert "orch enqueue" not in told
    waiting = measured(256, state="queued", outcome=None, max_tokens=2000, fvu=None)
    message, (told,) = _advice("ln", [*known, waiting])
    assert f"there already: (n=256, k=8: job {waiting.job_id} queued)" in message
    assert "missing" not in message
    assert told == "1 of them has not ended: orch wait s"


def test_sizes_that_wait_are_not_asked_for_by_the_law_of_compute() -> None:
    """With 64 of 64, 128 and 256 trained it asked for 512 and 1,024."""
    states = ("queued", "paused")
    coming = [measured(n, state=s, outcome=None, fvu=None) for n, s in zip((128, 256), states, strict=True)]
    message, told = _advice("lc", [measured(64), *coming])
    parts = ", ".join(f"(n={r.n_latents}, k=8: job {r.job_id} {r.state})" for r in coming)
    assert f"there already: {parts}" in message
    assert "missing" not in message
    assert told == ["2 of them have not ended: orch wait s"]
    message, told = _advice("lc", [measured(64), coming[0]])
    assert "missing: (n=256, k=8, lr=0.00707)" in message
    assert told[1].endswith("sae.n_latents=256 sae.k=8 optimizer.lr=0.00707")


def test_a_rate_above_the_largest_that_converges_may_wait_already() -> None:
    waiting = measured(64, lr=0.02, state="running", outcome=None)
    message, told = _advice("lr", [measured(64, lr=0.01), waiting])
    assert f"(n=64, k=8: job {waiting.job_id} running)" in message
    assert not any("n_latents=64" in line for line in told)


def test_jobs_of_another_layer_supply_nothing() -> None:
    """A job that ran at layer 1 was said to be on its way for the law of layer 3."""
    other = [measured(n, hook="layer 1", state="running", outcome=None) for n in (64, 128, 256)]
    with pytest.raises(FitError) as told:
        fit("ln", [*other, measured(64, hook="layer 3")], options=FitOptions(hook="layer 3"))
    assert "missing: (n=128, k=8" in told.value.message
    assert "there already" not in told.value.message
    assert "not ended" not in told.value.hint


def test_no_job_is_asked_for_that_is_there() -> None:
    """T(N) asked for the same config again, which would come to the same bound."""
    known = [*line((64, 128)), measured(256, tokens=None, bound=700.0)]
    _, (told,) = _advice("tn", known)
    assert told.endswith("sae.n_latents=256 sae.k=8 optimizer.lr=0.01 stop.epsilon=0.0025")
    stricter = measured(256, tokens=None, bound=1400.0, stop_epsilon=0.0025)
    _, (told,) = _advice("tn", [*known, stricter])
    assert told.startswith(
        f"n = 256, k = 8: the limit of job {known[-1].job_id} is not settled, and neither is that of"
    )
    assert "orch enqueue" not in told


def test_what_diverged_or_died_is_tried_more_slowly() -> None:
    rows = [measured(64), measured(128, lr=0.04, outcome="diverged"), measured(256, lr=0.02, fvu=1.1)]
    with pytest.raises(FitError, match=r"\(n=128, k=8, lr=0.02\), \(n=256, k=8, lr=0.01\)"):
        fit("ln", rows)


def test_what_hardly_learned_is_tried_faster() -> None:
    """It is as high as what diverged, and the hint once halved its rate."""
    rows = [measured(64), measured(128, lr=1e-6, outcome="not_learning", fvu=1.1)]
    with pytest.raises(FitError, match=r"\(n=128, k=8, lr=0.00707\)"):
        fit("ln", rows)
    rows = [measured(64, lr=0.04), measured(128, lr=1e-6, outcome="not_learning", fvu=1.1), measured(256, lr=0.01)]
    with pytest.raises(FitError, match=r"\(n=128, k=8, lr=2e-06\)"):
        fit("lr", rows)


def test_a_learning_rate_is_bracketed_from_both_sides() -> None:
    rows = [measured(64, lr=0.04), measured(128, lr=0.04, outcome="diverged"), measured(256, lr=0.01)]
    with pytest.raises(FitError, match=r"\(n=64, k=8, lr=0.08\), \(n=128, k=8, lr=0.02\), \(n=256, k=8, lr=0.02\)"):
        fit("lr", rows)


def test_subjects_lack_sizes_or_another_subject() -> None:
    rows = [*line((64, 128, 256), subject="one"), measured(64, subject="two@main")]
    with pytest.raises(FitError, match=r"missing: \(n=128, k=8, lr=0.00707\)") as told:
        fit("ls", rows)
    assert told.value.hint.endswith("subject.model=two subject.revision=main")
    with pytest.raises(FitError) as told:
        fit("ls", line((64, 128, 256)))
    assert told.value.hint == "Add a subject: orch enqueue FILE --name s subject.model=ANOTHER"


@pytest.mark.parametrize("law", LAWS)
def test_an_empty_sweep_has_an_answer(law: LawName) -> None:
    with pytest.raises(FitError, match="there is no job") as told:
        fit(law, [])
    assert told.value.hint == "Add some: orch enqueue FILE"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("broken", [{"fvu": math.nan, "tokens": None}, {"fvu": None, "tokens": None}])
def test_jobs_of_no_use_have_an_answer(law: LawName, broken: dict[str, Any]) -> None:
    rows = [measured(n, **broken, lr_is_auto=True) for n in (64, 128, 256)]
    with pytest.raises(FitError) as told:
        fit(law, rows)
    assert "Left out" in told.value.message
    sizes = "512,1024" if law == "lc" else "64,128,256"
    again = "" if law in ("lc", "lr", "lrt") else " training.seed=1"
    lr = "0.02" if law in ("lr", "lrt") else "auto"
    assert f"orch enqueue FILE --name s sae.n_latents={sizes} sae.k=8 optimizer.lr={lr}{again}" in told.value.hint


def test_some_groups_are_fitted_and_the_others_told() -> None:
    rows = [*line((64, 128, 256), e=0.0, noise=0.01), measured(64, 16)]
    [found] = fit("ln", rows, n_bootstrap=100)
    assert found.group == "k=8"
    assert any(note.startswith("Not fitted: L(N) (k=16) needs") for note in found.notes)
    done = fit_laws(["ln", "lr"], rows, FitOptions(), n_bootstrap=100, seed=0)
    assert [(one.law, one.group) for one in done.refused] == [("ln", "k=16"), ("lr", "k=8"), ("lr", "k=16")]


def test_one_seed_gives_one_answer() -> None:
    rows = line((64, 128, 256, 512), e=0.0, noise=0.01)
    first, again, other = (fit("ln", rows, n_bootstrap=200, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first.draws != other.draws
    assert (first.n_bootstrap, len(first.draws)) == (200, 200)


def test_seeds_widen_nothing_but_tell_their_spread() -> None:
    rows = [row for seed in range(3) for row in line((64, 128, 256, 512, 1024), e=0.0, noise=0.01, seed=seed)]
    [found] = fit("ln", rows)
    assert found.seed_sigma == pytest.approx(0.01, rel=0.5)
    assert found.coefficients["b"].low < -0.163 < found.coefficients["b"].high
