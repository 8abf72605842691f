"""A law fitted to jobs: the forms it can take, the one AICc chooses, its bootstrap, and what a reader must know."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from orchestrator.errors import FitError
from orchestrator.formatting import Interval
from orchestrator.job_states import TERMINAL
from orchestrator.scaling.fit.bootstrap import Refits, is_runaway, refit, sober
from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.equal_tokens import common_tokens
from orchestrator.scaling.fit.estimate import Estimate, data_of, estimate
from orchestrator.scaling.fit.missing_jobs import shortage
from orchestrator.scaling.fit.model_selection import allowed, chosen, profile, score
from orchestrator.scaling.fit.notes import Refitted, notes_on, seed_sigma
from orchestrator.scaling.fit.options import GROUNDS, FitOptions
from orchestrator.scaling.fit.outliers import without_outliers
from orchestrator.scaling.fit.predict import HIGH, LOW
from orchestrator.scaling.fit.repeated_text import note_on_passes
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.forms import Array, coefficients, log_values
from orchestrator.scaling.law import Law
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.types import Fit, JobMeasurement, LawName, Residual, Score

N_BOOTSTRAP = 2000
"""Refits behind the intervals, by default."""
KEPT_DRAWS = 400
"""Refits that are stored with a fit."""
_LEAST_FOR_FLOOR = 3
"""Values of the second variable that determine a floor which depends on it."""

_NO_FLOOR = -27.0
"""ln of a floor that no loss feels: where an interval of ζ ends that of its floor reaches 0."""


class Refusal(NamedTuple):
    """Why a law, or one group of it, has no fit."""

    law: LawName
    group: str
    error: FitError


class Fitted(NamedTuple):
    """What came of a law: a fit per group, and why other groups have none."""

    fits: tuple[Fit, ...]
    refused: tuple[Refusal, ...]


class _Tried(NamedTuple):
    """The forms of one sample."""

    sample: Sample
    estimates: list[Estimate]
    scores: list[Score]
    preferred: int
    """By AICc."""

    def determined(self) -> list[int]:
        """Return the forms with more terms than AICc prefers that the jobs determine, the widest first.

        No floor that varies with k where only two k are there: such a law is undetermined at any other k. And none
        whose power terms describe the smallest size alone.
        """
        n_seconds = len({one.z for one in self.sample.observations})
        found = []
        for at in range(len(self.estimates) - 1, self.preferred, -1):
            form, theta = self.estimates[at].form, self.estimates[at].theta
            is_open = "z" in form.floor and n_seconds < _LEAST_FOR_FLOOR
            if not is_open and not is_runaway(form, theta[None], self.sample)[0]:
                found.append(at)
        return found


def fit(
    law: LawName,
    rows: Sequence[JobMeasurement],
    *,
    epsilon: float = 0.01,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
    options: FitOptions | None = None,
) -> list[Fit]:
    """Fit a law to jobs: one Fit per fixed k where the law is per k. With `options`, their epsilon counts.

    Raises:
        FitError: too few jobs, naming the missing (n, k, lr) and the command that supplies them; or a mixture.
    """
    done = fit_groups(law, rows, options or FitOptions(epsilon=epsilon), n_bootstrap=n_bootstrap, seed=seed)
    if not done.fits:
        raise done.refused[0].error
    not_fitted = tuple(f"Not fitted: {one.error.message}" for one in done.refused)
    return [replace(one, notes=one.notes + not_fitted) for one in done.fits]


def fit_groups(
    name: LawName, rows: Sequence[JobMeasurement], options: FitOptions, *, n_bootstrap: int, seed: int
) -> Fitted:
    """Fit a law wherever the jobs allow it.

    Raises:
        FitError: jobs of several subjects, hook points, texts or activations, and none of them chosen.
    """
    law = LAWS[name]
    fits, refused = list[Fit](), list[Refusal]()
    sweeps = tuple(sorted({row.sweep for row in rows}))
    meant = [row for row in rows if all(getattr(options, name) in (None, getattr(row, name)) for name in GROUNDS)]
    if law.is_at_equal_tokens:
        options = replace(options, loss="fvu", tokens=options.tokens or common_tokens(meant))
    kept, excluded = sort_out(law, rows, options)
    asked: dict[str, float | int | str | None] = {
        "epsilon": options.epsilon, "loss": options.loss, "flops": options.flops, "jobs ended": ended(rows),
        "curve points": curve_points(rows), **({"tokens": options.tokens} if law.is_at_equal_tokens else {}),
    }  # fmt: skip
    if kept and kept[0].layers and kept[0].layer is not None:
        asked["layer"] = kept[0].layer
    for sample in _with_own_excluded(law.samples(kept, excluded, options), rows):
        forms = allowed(law.forms, sample)
        if not forms or not law.is_enough(sample):
            refused.append(Refusal(name, sample.group, shortage(law, sample, meant)))
            continue
        sample = without_outliers(sample, forms[-1])
        estimates = [estimate(form, sample) for form in allowed(law.forms, sample)]
        scores = [score(one, sample) for one in estimates]
        tried = _Tried(sample, estimates, scores, chosen(scores))
        found = _compose(law, tried, n_bootstrap=n_bootstrap, seed=seed)
        shared = {name: getattr(kept[0], name) for name in GROUNDS if name in law.grounds or getattr(options, name)}
        shared.pop("subject", None)
        notes = (*found.notes, *note_on_passes(kept, found.jobs))
        fits.append(replace(found, sweeps=sweeps, options=found.options | asked, notes=notes, **shared))
    if not fits and not refused:
        refused.append(Refusal(name, "", shortage(law, None, meant, excluded=excluded)))
    return Fitted(tuple(fits), tuple(refused))


def _with_own_excluded(samples: Sequence[Sample], rows: Sequence[JobMeasurement]) -> list[Sample]:
    """Return samples that leave out no job of another sample's k; one of a k without a sample is told of in each."""
    k_of = {row.job_id: row.k for row in rows}
    sampled = {sample.k for sample in samples}
    return [
        replace(sample, excluded=tuple(
            one for one in sample.excluded
            if sample.k is None or k_of[one.job_id] == sample.k or k_of[one.job_id] not in sampled
        ))
        for sample in samples
    ]  # fmt: skip


def ended(rows: Sequence[JobMeasurement]) -> int:
    """Return how many jobs have ended: by this number, stored with a fit, one that ended meanwhile is noticed."""
    return sum(row.state in TERMINAL for row in rows)


def curve_points(rows: Sequence[JobMeasurement]) -> int:
    """Return how many points the curves have: by this number a fit to curves that have grown since is noticed."""
    return sum(len(row.curve) for row in rows)


def fit_laws(
    laws: Sequence[LawName], rows: Sequence[JobMeasurement], options: FitOptions, *, n_bootstrap: int, seed: int
) -> Fitted:
    """Fit several laws; a mixture that one of them cannot bear is a refusal of that law."""
    fits, refused = list[Fit](), list[Refusal]()
    for law in laws:
        try:
            done = fit_groups(law, rows, options, n_bootstrap=n_bootstrap, seed=seed)
        except FitError as error:
            refused.append(Refusal(law, "", error))
        else:
            fits += done.fits
            refused += done.refused
    return Fitted(tuple(fits), tuple(refused))


def _compose(law: Law, tried: _Tried, *, n_bootstrap: int, seed: int) -> Fit:
    at, refits = _widest(tried, n_refits=n_bootstrap, seed=seed)
    found, form, sample = tried.estimates[at], tried.estimates[at].form, tried.sample
    irreducible = profile(found, sample)
    drawn = coefficients(form, refits.theta)
    preferred = _refit_preferred(tried, at, n_refits=n_bootstrap, seed=seed)
    _, there = sample.without_largest()
    notes = notes_on(law, sample, tried.estimates, at, irreducible=irreducible, preferred=preferred)
    return Fit(
        law=law.key, sweeps=(), group=sample.group, subject=sample.subject, form=form.name, equation=form.equation,
        coefficients=_intervals(found, drawn, preferred, irreducible), scores=tuple(tried.scores),
        irreducible=irreducible, residuals=_residuals(found, sample), excluded=sample.excluded,
        holdout_error=tried.scores[at].holdout_error,
        holdout_jobs=tuple(dict.fromkeys(job for one in there.observations for job in one.jobs)),
        seed_sigma=seed_sigma(sample),
        draws=_thinned(drawn), drawn_form=form.name, n_bootstrap=len(refits.theta),
        notes=(*notes, *_note_on_form(tried, at)),
        options={"seed": seed, "refits that did not converge": refits.failed},
        medians=dict(zip(form.names, np.median(drawn, axis=0).tolist(), strict=True)) if len(drawn) else {},
    )  # fmt: skip


def _widest(tried: _Tried, *, n_refits: int, seed: int) -> tuple[int, Refits]:
    """Return the widest form that the jobs determine, with its refits.

    One whose refits run away in half the cases or more is not determined. Where none is, the one AICc prefers is taken.
    """
    for at in tried.determined():
        found = tried.estimates[at]
        refits = refit(found, tried.sample, n_refits=n_refits, seed=seed)
        kept = sober(found.form, refits.theta, tried.sample)
        if kept is not None:
            return at, refits._replace(theta=kept)
    found = tried.estimates[tried.preferred]
    refits = refit(found, tried.sample, n_refits=n_refits, seed=seed)
    kept = sober(found.form, refits.theta, tried.sample)
    return tried.preferred, refits if kept is None else refits._replace(theta=kept)


def _refit_preferred(tried: _Tried, at: int, *, n_refits: int, seed: int) -> Refitted | None:
    """Return refits of the form that AICc prefers; None where it is the one that is printed."""
    if at == tried.preferred:
        return None
    found = tried.estimates[tried.preferred]
    theta = refit(found, tried.sample, n_refits=n_refits, seed=seed).theta
    return Refitted(found.form, coefficients(found.form, theta))


def _note_on_form(tried: _Tried, at: int) -> list[str]:
    """Say where AICc prefers another form than the one that is printed."""
    best, printed = tried.scores[tried.preferred], tried.scores[at]
    if at == tried.preferred or best.aicc is None or printed.aicc is None:
        return []
    return [
        f"AICc prefers the form {best.form} (by {printed.aicc - best.aicc:.1f}), a special case of {printed.form}:"
        " the intervals allow for both."
    ]


def _intervals(
    found: Estimate, drawn: Array, preferred: Refitted | None, irreducible: tuple[float, float] | None
) -> dict[str, Interval]:
    """Return the coefficients with their 90% intervals, which hold those of the form that AICc prefers.

    That of a constant floor holds its profile interval too: where every refit has lost its floor, only the profile
    tells how large it may be.
    """
    form = found.form
    values = coefficients(form, found.theta)
    low, high = np.quantile(drawn, [LOW, HIGH], axis=0) if len(drawn) else (values, values)
    ends = dict(zip(form.names, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    others: dict[str, tuple[float, float]] = {}
    if preferred is not None and len(preferred.drawn):
        others = dict(
            zip(preferred.form.names, np.quantile(preferred.drawn, [LOW, HIGH], axis=0).T.tolist(), strict=True)
        )
    if irreducible is not None and form.floor == ("1",):
        least = math.exp(_NO_FLOOR)
        between = irreducible if form.kinds[-1] == "exp" else tuple(math.log(max(least, end)) for end in irreducible)
        others[form.names[-1]] = between[0], between[1]
    for name, other in others.items():
        ends[name] = min(ends[name][0], other[0]), max(ends[name][1], other[1])
    return {name: Interval(value, *ends[name]) for name, value in zip(form.names, values.tolist(), strict=True)}


def _thinned(drawn: Array) -> tuple[tuple[float, ...], ...]:
    """Return a few hundred of the draws; they are independent, so the first are as good as any."""
    return tuple(tuple(map(float, row)) for row in drawn[:KEPT_DRAWS].tolist())


def _residuals(found: Estimate, sample: Sample) -> tuple[Residual, ...]:
    listed: list[Observation] = [*sample.observations, *sample.shown]
    if not listed:
        return ()
    data = data_of(found.form, sample.of(listed))
    predicted = log_values(found.theta[None], data.points)[0][0]
    return tuple(
        Residual(one.jobs, one.x, one.k, one.subject, one.value, float(np.exp(log)), float(np.log(one.value) - log),
                 one.censored, one.flagged)
        for one, log in zip(listed, predicted, strict=True)
    )  # fmt: skip
