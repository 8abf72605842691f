"""Which jobs to run next: within a budget, those that shrink the uncertainty about a law most for their cost."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.errors import ConfigError, FitError
from orchestrator.formatting import jobs_named
from orchestrator.job_states import OPEN
from orchestrator.scaling.fit.model_selection import rivals
from orchestrator.scaling.forms import Array, design, log_values, parameters
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plan.budget import Allowance
from orchestrator.scaling.plan.candidates import Candidate, another, candidate, sizes
from orchestrator.scaling.plan.forecast import ForecastInputs, extrapolation, ks_of, noise
from orchestrator.scaling.types import Fit

MOST_JOBS = 64
_LEAST_GAIN = 0.01
"""Of the two variances at the start: below it a job is not worth its cost, however little that is."""
_MOST_SEEDS = 4
"""At one place, those there already among them: more would only tell how wrong the law is there."""
_OUTLIERS = (0.025, 0.975)
"""Quantiles the draws are clipped to: one refit far from the others must not decide a plan."""


class Choice(NamedTuple):
    """A job to enqueue, and why."""

    job: Candidate
    why: str


@dataclass
class _Uncertainty:
    """The covariance, over bootstrap draws, of what is to be known of a fit and of ln fvu at each place, (n, k).

    Observing a job at place j with error variance v conditions all of it: C − c cᵀ / (C_jj + v), c the column of j.
    Jobs of one place share an error of variance τ² and have one of their own, σ²: the mean of m of them has the
    variance τ² + σ²/m, so one more adds a precision of 1/(τ² + σ²/(m + 1)) − 1/(τ² + σ²/m) at most.
    """

    fit: Fit
    exponent: str
    far: int
    """The size at which the prediction is to become better: the largest that can be chosen."""
    places: list[tuple[int, int]]
    covariance: Array
    """(2 + n_places, 2 + n_places): the exponent, ln fvu at the far size, then ln fvu at each place."""
    start: Array
    """Variances of the first two, at the start."""
    between: float
    """τ², of ln fvu."""
    within: float
    """σ²."""
    there: Counter[tuple[int, int]]
    """Jobs at each place, those that were chosen among them."""
    unfinished: tuple[int, ...] = ()
    """Jobs at these places that have not ended: they are coming, and no law has them yet."""
    left_by_them: Array | None = None
    """What they should leave of the two standard deviations, as parts of those at the start, (2,)."""

    @property
    def noise(self) -> float:
        """Return the standard deviation of ln fvu of one job around the law."""
        return math.sqrt(self.between + self.within)

    def gains(self, place: tuple[int, int]) -> Array:
        """Return the parts of the two variances at the start that a job at a place would remove, (2,)."""
        at = 2 + self.places.index(place)
        removed: Array = self.covariance[:2, at] ** 2 / (self.covariance[at, at] + self._error(place))
        return removed / self.start

    def observe(self, place: tuple[int, int]) -> None:
        """Take a job at a place as done."""
        column = self.covariance[:, 2 + self.places.index(place)].copy()
        variance = column[2 + self.places.index(place)] + self._error(place)
        self.covariance -= np.outer(column, column) / variance
        self.there[place] += 1

    def _error(self, place: tuple[int, int]) -> float:
        """Return the error variance with which one more job at a place counts."""
        m = self.there[place]
        after = self.between + self.within / (m + 1)
        if m == 0:
            return after
        before = self.between + self.within / m
        return before * after / (before - after) if before > after else math.inf

    def left(self) -> Array:
        """Return what is left of the two standard deviations, as parts of those at the start, (2,)."""
        kept: Array = np.sqrt(np.maximum(np.diag(self.covariance)[:2], 0.0) / self.start)
        return kept


def plan_within_budget(inputs: ForecastInputs, budget: Allowance) -> tuple[list[Choice], list[str]]:
    """Return jobs within a budget, greedily the one that shrinks most per cost first, and what they are to bring.

    What shrinks is the variance of the exponent and of ln fvu at the largest size, by the bootstrap's draws. Jobs that
    have not ended are expected to bring what jobs bring, so that none is proposed in their place, and are told apart
    from what the plan adds. Every job counts with its whole max_tokens, so that no plan exceeds its budget.

    Raises:
        FitError: no draws to plan from, or no way to tell what a job costs.
        ConfigError: the budget is below the cheapest job.
    """
    uncertainties = list(_uncertainties(inputs))
    if not uncertainties:
        raise FitError("the fits have no bootstrap draws to plan from", hint="Fit again: orch fit SWEEP")
    offers = list(_offers(inputs, uncertainties, budget))
    _check_budget(offers, budget)
    chosen: list[Choice] = []
    left = budget.amount
    while len(chosen) < MOST_JOBS:
        useful = [one for one in offers if one.price <= left and one.seeds < _MOST_SEEDS and one.gain >= _LEAST_GAIN]
        if not useful:
            break
        best = max(useful, key=lambda one: one.gain / one.price)
        chosen.append(Choice(best.job, _why(best)))
        left -= best.price
        best.take(inputs)
    return chosen, [_promise(uncertainty) for uncertainty in uncertainties]


@dataclass
class _Offer:
    """The next job at one place."""

    job: Candidate
    uncertainty: _Uncertainty
    place: tuple[int, int]
    price: float
    seeds: int
    """That the place has, or will have."""
    has_unfinished: bool
    """Whether a job at the place has not ended."""

    @property
    def gains(self) -> Array:
        return self.uncertainty.gains(self.place)

    @property
    def gain(self) -> float:
        return float(self.gains.sum())

    def take(self, inputs: ForecastInputs) -> None:
        """Count the job as done; the next at this place has another seed."""
        self.uncertainty.observe(self.place)
        self.job = another(inputs, self.job)
        self.seeds += 1


def _uncertainties(inputs: ForecastInputs) -> Iterator[_Uncertainty]:
    """Yield the uncertainty about each fit of fvu: L(N) of each k, or, without one, L(N,K)."""
    own = [fit for fit in inputs.losses if fit.law == "ln"]
    for fit in own or inputs.losses:
        if len(fit.draws) < 2:
            continue
        places = list(sizes(fit, sorted(ks_of(fit))))
        uncertainty = _uncertainty(fit, places)
        coming = [row for row in inputs.rows if row.state in OPEN and (row.n_latents, row.k) in places]
        for row in coming:
            uncertainty.observe((row.n_latents or 0, row.k))
        uncertainty.unfinished = tuple(row.job_id for row in coming)
        uncertainty.left_by_them = uncertainty.left()
        yield uncertainty


def _uncertainty(fit: Fit, places: list[tuple[int, int]]) -> _Uncertainty:
    law = LAWS[fit.law]
    form, exponent = law.form(fit.taken), law.exponent
    far = max(places)
    points = [far, *places]
    at = design(form, np.array([n for n, _ in points], float), np.array([k for _, k in points], float))
    rows = np.asarray(fit.draws, dtype=float)
    drawn = np.column_stack([rows[:, form.names.index(exponent)], log_values(parameters(form, rows), at)[0]])
    low, high = np.quantile(drawn, _OUTLIERS, axis=0)
    there = Counter((round(one.x), one.k or 0) for one in fit.residuals for _ in one.jobs if not one.censored)
    covariance = np.atleast_2d(np.cov(np.clip(drawn, low, high), rowvar=False))
    start = np.maximum(np.diag(covariance)[:2].copy(), 1e-18)
    return _Uncertainty(fit, exponent, far[0], places, covariance, start, *_errors(fit), there)


def _errors(fit: Fit) -> tuple[float, float]:
    """Return τ² and σ² of ln fvu; half of the whole variance each where no place has two seeds."""
    whole = noise(fit) ** 2
    within = whole / 2 if fit.seed_sigma is None else min(whole, fit.seed_sigma**2)
    return whole - within, within


def _offers(inputs: ForecastInputs, uncertainties: Sequence[_Uncertainty], budget: Allowance) -> Iterator[_Offer]:
    """Yield the next job at each place of each fit, where anything tells its price."""
    for uncertainty in uncertainties:
        for place in uncertainty.places:
            offer = _offer(inputs, uncertainty, place, budget)
            if offer is not None:
                yield offer


def _offer(
    inputs: ForecastInputs, uncertainty: _Uncertainty, place: tuple[int, int], budget: Allowance
) -> _Offer | None:
    job = candidate(inputs, *place)
    price = job.price(budget.unit)
    there = [row for row in inputs.rows if (row.n_latents, row.k) == place]
    seeds = {row.seed for row in there if row.outcome == "converged" or row.state in OPEN}
    is_coming = any(row.state in OPEN for row in there)
    return _Offer(job, uncertainty, place, price, len(seeds), is_coming) if price else None


def _check_budget(offers: Sequence[_Offer], budget: Allowance) -> None:
    if not offers:
        what = "no job of these sweeps has ended on a device" if budget.unit == "seconds" else "d_model is not known"
        raise FitError(
            f"nothing tells what a job would cost in {budget.unit}: {what}",
            hint="Let a job of the sweep end first, or give the budget in the other unit: hours or FLOPs.",
        )
    cheapest = min(offers, key=lambda offer: offer.price)
    if cheapest.price > budget.amount:
        raise ConfigError(
            f"the budget of {budget.amount:.3g} {budget.unit} is below the cheapest job: n_latents ="
            f" {cheapest.job.n_latents}, k = {cheapest.job.k} takes up to {cheapest.price:.3g} {budget.unit}",
            hint="Raise --budget.",
        )


def _why(offer: _Offer) -> str:
    job, uncertainty = offer.job, offer.uncertainty
    beyond = extrapolation(uncertainty.fit, job.n_latents)
    new = f"{beyond:.3g}× beyond the largest" if beyond > 1 else "a size between"
    what = f"another seed: one job errs by {uncertainty.noise:.1%}" if offer.seeds else new
    what += ", beside one that has not ended" if offer.has_unfinished else ""
    exponent, far = np.sqrt(np.maximum(1 - offer.gains, 0.0)).tolist()
    return f"{what}; error of {uncertainty.exponent} to {exponent:.0%}, that of fvu at n={uncertainty.far} to {far:.0%}"


def _promise(uncertainty: _Uncertainty) -> str:
    """Say how much smaller the errors should become."""
    exponent, far = uncertainty.left()
    fit = uncertainty.fit
    held = f" ({fit.group})" if fit.group else ""
    interval = fit.coefficients[uncertainty.exponent]
    by_form = "" if fit.taken == fit.form else f", reckoned in the form {fit.taken},"
    ids, parts = uncertainty.unfinished, uncertainty.left_by_them
    first = ""
    if ids and parts is not None:
        alone = "themselves" if len(ids) > 1 else "itself"
        first = f"; {jobs_named(ids)}, not ended yet, should bring them to {parts[0]:.0%} and {parts[1]:.0%} by {alone}"
    open_to = " and ".join(rivals(fit.scores, fit.form))
    undecided = f"; AICc does not rule out {open_to}: larger sizes tell them apart" if open_to else ""
    return (
        f"{LAWS[fit.law].title}{held}: {uncertainty.exponent} = {interval.value:.4f}"
        f" ({interval.low:.4f} to {interval.high:.4f}) by the form {fit.form}; its error{by_form} should fall to"
        f" {exponent:.0%}, that of fvu at n={uncertainty.far} to {far:.0%}{first}{undecided}"
    )
