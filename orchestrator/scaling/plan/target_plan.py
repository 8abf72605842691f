"""The smallest SAE that is expected to reach a given fvu, and at which k it costs least."""

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.errors import ConfigError, FitError
from orchestrator.formatting import Interval, jobs_named
from orchestrator.job_states import OPEN
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plan.budget_plan import Choice
from orchestrator.scaling.plan.candidates import Candidate, candidate
from orchestrator.scaling.plan.forecast import ForecastInputs, expected, extrapolation, ks_of, loss_fit
from orchestrator.scaling.types import Fit

FARTHEST = 1024.0
"""Times the largest size fitted: beyond, a law is too uncertain to enqueue a job by."""
_STEPS = 16
"""Sizes between two powers of two that are tried."""


def plan_for_target(inputs: ForecastInputs, fvu: float, ks: Sequence[int] = ()) -> tuple[list[Choice], list[str]]:
    """Return the one job that is expected to reach an fvu for the fewest FLOPs, and what the other k would take.

    Raises:
        ConfigError: no fvu, or below what the laws can reach: the message names the floor.
        FitError: no fit predicts fvu at a k.
    """
    if not 0 < fvu < 1:
        raise ConfigError(f"--target-fvu {fvu:g} is no share between 0 and 1", hint="Such as --target-fvu 0.2.")
    asked = sorted(set(ks) or {k for fit in inputs.losses for k in ks_of(fit)})
    fits = {k: loss_fit(inputs.losses, k) for k in asked}
    if not fits:
        raise FitError("no fit speaks of fvu", hint="Fit one: orch fit SWEEP")
    tried = {k: smallest(fit, fvu, k) for k, fit in fits.items()}
    found = {k: n for k, n in tried.items() if n is not None}
    if not found:
        raise _unreachable(fvu, fits)
    jobs = {k: candidate(inputs, n, k) for k, n in found.items()}
    best = min(jobs, key=lambda k: (jobs[k].flops is None, jobs[k].flops or found[k], k))
    others = [
        _at_another_k(k, found.get(k), fits[k], fvu, jobs[k].flops if k in jobs else None) for k in asked if k != best
    ]
    return [Choice(jobs[best], _why(fits[best], found[best], best, fvu))], [*_unfinished(inputs, jobs[best]), *others]


def smallest(fit: Fit, fvu: float, k: int) -> int | None:
    """Return the smallest size at which a fit expects an fvu, rounded up to six binary digits; None if none does.

    Sizes go from k, or an eighth of the smallest fitted, to `FARTHEST` times the largest fitted.
    """
    known = [one.x for one in fit.residuals if not one.censored]
    start = math.log2(max(k, min(known) / 8))
    steps = math.ceil((math.log2(FARTHEST * max(known)) - start) * _STEPS)
    tried = [_round_up(max(k, math.ceil(2 ** (start + step / _STEPS)))) for step in range(steps + 1)]
    return next((n for n in tried if expected(fit, n, k).value <= fvu), None)


def _round_up(n_latents: int) -> int:
    unit: int = 2 ** max(0, n_latents.bit_length() - 6)
    return -(-n_latents // unit) * unit


def floor(fit: Fit, k: int) -> Interval | None:
    """Return the irreducible fvu of a fit at a k, with the interval of its draws; None where its form has none."""
    values = {name: one.value for name, one in fit.coefficients.items()}
    if fit.form == "pure":
        return None
    if "e" in values:
        return fit.coefficients["e"]

    def at(zeta: float, eta: float) -> float:
        return math.exp(zeta + eta * math.log(k))

    value = at(values["zeta"], values.get("eta", 0.0))
    names = LAWS[fit.law].form(fit.taken).names
    drawn = [dict(zip(names, draw, strict=True)) for draw in fit.draws]
    floors = [at(draw["zeta"], draw.get("eta", 0.0)) for draw in drawn] or [value]
    low, high = np.quantile(floors, [0.05, 0.95])
    return Interval(value, min(float(low), value), max(float(high), value))


def _unreachable(fvu: float, fits: dict[int, Fit]) -> ConfigError:
    known = {k: floor(fit, k) for k, fit in fits.items()}
    floors = {k: found for k, found in known.items() if found is not None and found.value >= fvu}
    if floors:
        told = "; ".join(
            f"e = {one.value:.4f} ({one.low:.4f} to {one.high:.4f}) at k = {k}" for k, one in floors.items()
        )
        return ConfigError(
            f"no size reaches fvu {fvu:g}: the floor of the fit lies above it: {told}",
            hint="Ask for an fvu above the floor, or for another --k: the floor falls with k.",
        )
    far = ", ".join(
        f"{expected(fit, FARTHEST * max(one.x for one in fit.residuals), k).value:.4f} at k = {k}"
        for k, fit in fits.items()
    )
    return ConfigError(
        f"no size up to {FARTHEST:g}× the largest that was fitted reaches fvu {fvu:g}; that comes to {far}",
        hint="Ask for a higher fvu, or for a larger --k; the law must first be known at larger sizes.",
    )


def _why(fit: Fit, n_latents: int, k: int, fvu: float) -> str:
    told = expected(fit, n_latents, k)
    beyond = extrapolation(fit, n_latents)
    where = f", {beyond:.3g}× beyond the largest size fitted" if beyond > 1 else ""
    return (
        f"the smallest expected to reach fvu {fvu:g}: {told.value:.4f} ({told.low:.4f} to {told.high:.4f}) by the form"
        f" {fit.form}{'' if fit.taken == fit.form else f', the interval by {fit.taken}'}{where}"
    )


def _unfinished(inputs: ForecastInputs, job: Candidate) -> list[str]:
    """Say which jobs of this size have not ended: one of them may be what is asked for."""
    ids = [row.job_id for row in inputs.rows if row.state in OPEN and (row.n_latents, row.k) == (job.n_latents, job.k)]
    return [f"of this n and k there is, not ended yet: {jobs_named(ids)}; look at it first"] if ids else []


def _at_another_k(k: int, n_latents: int | None, fit: Fit, fvu: float, flops: float | None) -> str:
    if n_latents is None:
        base = floor(fit, k)
        return f"k = {k} does not reach fvu {fvu:g}" + (f": its floor is {base.value:.4f}" if base else "")
    cost = "" if flops is None else f", for up to {flops:.2g} FLOPs".replace("e+", "e")
    return f"k = {k} would take n_latents = {n_latents}{cost}"
