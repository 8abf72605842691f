"""A law fitted to jobs: the forms it can take, the one AICc chooses, its bootstrap, and what a reader must know."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from orchestrator.errors import FitError
from orchestrator.formatting import Interval
from orchestrator.job_states import TERMINAL
from orchestrator.scaling.fit.bootstrap import is_runaway, refit
from orchestrator.scaling.fit.eligible_jobs import sort_out
from orchestrator.scaling.fit.estimate import Estimate, data_of, estimate
from orchestrator.scaling.fit.missing_jobs import shortage
from orchestrator.scaling.fit.model_selection import allowed, chosen, profile, rivals, score
from orchestrator.scaling.fit.notes import notes_on, seed_sigma
from orchestrator.scaling.fit.options import GROUNDS, FitOptions
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
    at: int
    """Of the chosen one."""

    @property
    def chosen(self) -> Estimate:
        """Return the form with the lowest AICc."""
        return self.estimates[self.at]

    @property
    def wider(self) -> Estimate:
        """Return the form with one term more, which may be the true one; the chosen one where the jobs bear no more.

        Not the widest, and no floor that varies with k where only two k are there: such a law is undetermined at any
        other k. And none whose power terms describe the smallest size alone.
        """
        more = self.estimates[min(self.at + 1, len(self.estimates) - 1)]
        n_seconds = len({one.z for one in self.sample.observations})
        is_open = "z" in more.form.floor and n_seconds < _LEAST_FOR_FLOOR
        return self.chosen if is_open or is_runaway(more.form, more.theta[None], self.sample)[0] else more


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
    kept, excluded = sort_out(law, rows, options)
    for sample in law.samples(kept, excluded, options):
        forms = allowed(law.forms, sample)
        if not forms or not law.is_enough(sample):
            refused.append(Refusal(name, sample.group, shortage(law, sample, meant)))
            continue
        estimates = [estimate(form, sample) for form in forms]
        scores = [score(one, sample) for one in estimates]
        tried = _Tried(sample, estimates, scores, chosen(scores))
        found = _compose(law, tried, n_bootstrap=n_bootstrap, seed=seed)
        asked: dict[str, float | int | str | None] = {
            "epsilon": options.epsilon, "loss": options.loss, "flops": options.flops, "jobs ended": ended(rows),
            "curve points": curve_points(rows),
        }  # fmt: skip
        shared = {name: getattr(kept[0], name) for name in law.grounds if name != "subject"}
        notes = (*found.notes, *note_on_passes(kept, found.jobs))
        fits.append(replace(found, sweeps=sweeps, options=found.options | asked, notes=notes, **shared))
    if not fits and not refused:
        refused.append(Refusal(name, "", shortage(law, None, meant, excluded=excluded)))
    return Fitted(tuple(fits), tuple(refused))


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
    found, form, sample = tried.chosen, tried.chosen.form, tried.sample
    irreducible = profile(found, sample)
    refits = refit(found, sample, n_refits=n_bootstrap, seed=seed)
    drawn = coefficients(form, refits.theta)
    wider = _wider_draws(tried, n_refits=n_bootstrap, seed=seed)
    taken, draws = (form, drawn) if wider is None else (tried.wider.form, wider)
    _, there = sample.without_largest()
    notes = notes_on(law, sample, tried.estimates, tried.at, irreducible=irreducible, wider=wider)
    return Fit(
        law=law.key, sweeps=(), group=sample.group, subject=sample.subject, form=form.name, equation=form.equation,
        coefficients=_intervals(form.names, coefficients(form, found.theta), drawn), scores=tuple(tried.scores),
        irreducible=irreducible, residuals=_residuals(found, sample), excluded=sample.excluded,
        holdout_error=tried.scores[tried.at].holdout_error,
        holdout_jobs=tuple(dict.fromkeys(job for one in there.observations for job in one.jobs)),
        seed_sigma=seed_sigma(sample),
        draws=_thinned(draws), drawn_form=taken.name, n_bootstrap=len(refits.theta),
        notes=(*notes, *_notes_on_form(tried, taken.name)),
        options={"seed": seed, "refits that did not converge": refits.failed},
        medians=dict(zip(form.names, np.median(drawn, axis=0).tolist(), strict=True)) if len(drawn) else {},
    )  # fmt: skip


def _wider_draws(tried: _Tried, *, n_refits: int, seed: int) -> Array | None:
    """Return coefficients of refits of the wider form; None where there is none, or half of them or more ran away."""
    found = tried.wider
    if found is tried.chosen:
        return None
    theta = refit(found, tried.sample, n_refits=n_refits, seed=seed).theta
    kept = theta[~is_runaway(found.form, theta, tried.sample)]
    return coefficients(found.form, kept) if 2 * len(kept) > n_refits else None


def _notes_on_form(tried: _Tried, taken: str) -> list[str]:
    """Say which forms are not ruled out, and in which one bands are drawn."""
    form = tried.chosen.form.name
    open_to = " and ".join(rivals(tried.scores, form))
    lines = []
    if open_to:
        lines.append(f"AICc does not rule out {open_to}: the coefficients' intervals take the form {form} for true.")
    if taken != form:
        lines.append(f"Bands and forecasts are drawn in the form {taken}, of which {form} is a special case.")
    return lines


def _intervals(names: Sequence[str], values: Array, drawn: Array) -> dict[str, Interval]:
    low, high = np.quantile(drawn, [LOW, HIGH], axis=0) if len(drawn) else (values, values)
    triples = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(*found) for name, found in zip(names, triples, strict=True)}


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
