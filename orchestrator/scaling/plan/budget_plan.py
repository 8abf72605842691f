"""Which jobs to run next: within a budget, those that shrink the doubt about a law most for their cost."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.errors import ConfigError, FitError
from orchestrator.scaling.fit.model_selection import rivals
from orchestrator.scaling.forms import Array, design, log_values, parameters
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plan.budget import Allowance
from orchestrator.scaling.plan.candidates import Candidate, another, candidate, sizes
from orchestrator.scaling.plan.forecast import Basis, extrapolation, ks_of, noise
from orchestrator.scaling.types import Fit

MOST_JOBS = 64
_LEAST_GAIN = 0.01
"""Of the two variances at the start: below it a job is not worth its cost, however little that is."""
_MOST_SEEDS = 4
"""At one place, those there already among them: more would only tell how wrong the law is there."""
_AHEAD = ("queued", "running", "paused")
_OUTLIERS = (0.025, 0.975)
"""Quantiles the draws are clipped to: one refit that went astray must not steer a plan."""


class Choice(NamedTuple):
    """A job to enqueue, and why."""

    job: Candidate
    why: str


@dataclass
class _Doubt:
    """The covariance, over bootstrap draws, of what one wants to know and of what a job at each size would tell.

    Observing a job at a size with error variance v conditions all of it: C − c cᵀ / (C_jj + v), c the column of that
    size. Jobs of one size err together, by τ, and each for itself, by σ: of m of them the mean has the variance
    τ² + σ²/m, so one more brings no more precision than 1/(τ² + σ²/(m + 1)) − 1/(τ² + σ²/m).
    """

    fit: Fit
    exponent: str
    far: int
    """The size whose prediction counts: the largest that can be chosen."""
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


def shrink(basis: Basis, budget: Allowance) -> tuple[list[Choice], list[str]]:
    """Return jobs within a budget, greedily the one that shrinks most per cost first, and what they are to bring.

    What shrinks is the variance of the exponent and of ln fvu at the largest size, by the bootstrap's draws; jobs that
    wait or run already count as done. Every job counts with its whole max_tokens, so that no plan exceeds its budget.

    Raises:
        FitError: no draws to plan from, or no way to tell what a job costs.
        ConfigError: the budget is below the cheapest job.
    """
    doubts = list(_doubts(basis))
    if not doubts:
        raise FitError("the fits have no bootstrap draws to plan from", hint="Fit again: orch fit SWEEP")
    offers = [offer for doubt in doubts for place in doubt.places if (offer := _offer(basis, doubt, place, budget))]
    _check_budget(offers, budget)
    chosen: list[Choice] = []
    left = budget.amount
    while len(chosen) < MOST_JOBS:
        open_to = [one for one in offers if one.price <= left and one.seeds < _MOST_SEEDS and one.gain >= _LEAST_GAIN]
        if not open_to:
            break
        best = max(open_to, key=lambda one: one.gain / one.price)
        chosen.append(Choice(best.job, _why(best)))
        left -= best.price
        best.take(basis)
    return chosen, [_promise(doubt) for doubt in doubts]


@dataclass
class _Offer:
    """The next job at one place."""

    job: Candidate
    doubt: _Doubt
    place: tuple[int, int]
    price: float
    seeds: int
    """That the place has, or will have."""

    @property
    def gains(self) -> Array:
        return self.doubt.gains(self.place)

    @property
    def gain(self) -> float:
        return float(self.gains.sum())

    def take(self, basis: Basis) -> None:
        """Count the job as done; the next at this place has another seed."""
        self.doubt.observe(self.place)
        self.job = another(basis, self.job)
        self.seeds += 1


def _doubts(basis: Basis) -> Iterator[_Doubt]:
    """Yield the doubt about each fit of fvu: L(N) of each k, or, without one, L(N,K)."""
    own = [fit for fit in basis.losses if fit.law == "ln"]
    for fit in own or basis.losses:
        if len(fit.draws) < 2:
            continue
        places = list(sizes(fit, sorted(ks_of(fit))))
        doubt = _doubt(fit, places)
        for row in basis.rows:
            place = (row.n_latents or 0, row.k)
            if row.state in _AHEAD and place in places:
                doubt.observe(place)
        yield doubt


def _doubt(fit: Fit, places: list[tuple[int, int]]) -> _Doubt:
    law = LAWS[fit.law]
    form, exponent = law.form(fit.taken), law.exponent
    far = max(places)
    points = [far, *places]
    at = design(form, np.array([n for n, _ in points], float), np.array([k for _, k in points], float))
    rows = np.asarray(fit.draws, dtype=float)
    told = np.column_stack([rows[:, form.names.index(exponent)], log_values(parameters(form, rows), at)[0]])
    low, high = np.quantile(told, _OUTLIERS, axis=0)
    there = Counter((round(one.x), one.k or 0) for one in fit.residuals for _ in one.jobs if not one.censored)
    covariance = np.atleast_2d(np.cov(np.clip(told, low, high), rowvar=False))
    start = np.maximum(np.diag(covariance)[:2].copy(), 1e-18)
    return _Doubt(fit, exponent, far[0], places, covariance, start, *_errors(fit), there)


def _errors(fit: Fit) -> tuple[float, float]:
    """Return τ² and σ²; half of what jobs err by each, where no two seeds are there to tell."""
    whole = noise(fit) ** 2
    within = whole / 2 if fit.seed_sigma is None else min(whole, fit.seed_sigma**2)
    return whole - within, within


def _offer(basis: Basis, doubt: _Doubt, place: tuple[int, int], budget: Allowance) -> _Offer | None:
    job = candidate(basis, *place)
    price = job.price(budget.unit)
    there = [row for row in basis.rows if (row.n_latents, row.k) == place]
    seeds = {row.seed for row in there if row.outcome == "converged" or row.state in _AHEAD}
    return _Offer(job, doubt, place, price, len(seeds)) if price else None


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
    job, doubt = offer.job, offer.doubt
    beyond = extrapolation(doubt.fit, job.n_latents)
    new = f"{beyond:.3g}× beyond the largest" if beyond > 1 else "a size between"
    what = f"another seed: one job errs by {doubt.noise:.1%}" if offer.seeds else new
    exponent, far = offer.gains
    return f"{what}; variance of {doubt.exponent} −{exponent:.0%}, of ln fvu at n={doubt.far} −{far:.0%}"


def _promise(doubt: _Doubt) -> str:
    """Say how much smaller the errors should become; a new interval also tells what the old one did not know."""
    exponent, far = doubt.left()
    fit = doubt.fit
    held = f" ({fit.group})" if fit.group else ""
    interval = fit.coefficients[doubt.exponent]
    reckoned = "" if fit.taken == fit.form else f", reckoned in the form {fit.taken},"
    open_to = " and ".join(rivals(fit.scores, fit.form))
    doubted = f"; AICc does not rule out {open_to}: larger sizes tell them apart" if open_to else ""
    return (
        f"{LAWS[fit.law].title}{held}: {doubt.exponent} = {interval.value:.4f}"
        f" ({interval.low:.4f} to {interval.high:.4f}) by the form {fit.form}; its error{reckoned} should fall to"
        f" {exponent:.0%}, that of fvu at n={doubt.far} to {far:.0%}{doubted}"
    )
