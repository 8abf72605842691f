"""What an SAE of a size that was never trained is expected to reach and cost, each value with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError, FitError
from orchestrator.estimates.flops import Cost, estimate
from orchestrator.formatting import Interval
from orchestrator.scaling.fit.model_selection import rivals
from orchestrator.scaling.fit.predict import predict
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plan.throughput import Speed, speed, spread, subject_flops
from orchestrator.scaling.types import Fit, JobMeasurement

_FARTHEST = 300.0
"""Largest ln of a ratio: exp of it is still finite."""
_LEAST_NOISE = 1e-3
"""Of ln fvu of one job around a law."""


@dataclass(frozen=True)
class ForecastInputs:
    """The jobs, fits and config that a forecast is computed from."""

    rows: tuple[JobMeasurement, ...]
    """The jobs of the sweeps, of one subject and hook point."""
    config: JobConfig
    """Of one of them: what a new job shares with them."""
    losses: tuple[Fit, ...]
    """L(N) of each k, and L(N,K)."""
    lengths: tuple[Fit, ...]
    """T(N) of each k."""
    rates: tuple[Fit, ...] = ()
    """lr*(N) of each k."""
    device: str | None = None
    """Whose hours are counted."""

    @property
    def d_model(self) -> int | None:
        """Return the width at the hook point; None where no attempt has told."""
        return next((row.d_model for row in self.rows if row.d_model), None)

    @property
    def sweeps(self) -> tuple[str, ...]:
        """Return the names of the sweeps."""
        return tuple(dict.fromkeys(row.sweep for row in self.rows))


class Forecast(NamedTuple):
    """What one (n, k) is expected to reach and to cost; None where no job or fit tells."""

    n_latents: int
    k: int
    fvu: Interval
    """Of the law: one job errs by `noise` on top."""
    tokens_to_convergence: Interval | None
    tokens: Interval | None
    """Until the job's stop rule ends it."""
    flops_dense: Interval | None
    flops_executed: Interval | None
    """The subject's included."""
    seconds: Interval | None
    """On the device of `speed`."""
    extrapolation: float
    """How far n lies beyond the largest that was fitted, as a factor; below 1: beneath the smallest; 1: within."""
    law: str
    """Which fvu is from."""
    form: str
    speed: Speed | None
    noise: float
    """Standard deviation of ln fvu of one job around the law."""
    taken: str
    """The form by which fvu's interval is drawn."""
    rivals: tuple[str, ...] = ()
    """Forms with more terms than that which are not ruled out: fvu's interval does not allow for them."""


def forecast(inputs: ForecastInputs, sizes: Sequence[tuple[int, int]]) -> list[Forecast]:
    """Return what each (n_latents, k) is expected to reach and to cost.

    Raises:
        ConfigError: a size that no SAE has.
        FitError: no fit predicts fvu at that k.
    """
    return [_forecast(inputs, n_latents, k) for n_latents, k in sizes]


def _forecast(inputs: ForecastInputs, n_latents: int, k: int) -> Forecast:
    check_size(n_latents, k)
    fit = loss_fit(inputs.losses, k)
    counted = length(inputs, n_latents, k)
    tokens = times(counted, stretch(inputs.rows)) if counted else None
    costs = [cost(inputs, n_latents, k, math.ceil(at)) for at in tokens] if tokens else []
    pace = speed(inputs.rows, device=inputs.device, n_latents=n_latents)
    executed = _interval([one.flops_executed for one in costs])
    return Forecast(
        n_latents, k, expected(fit, n_latents, k), counted, tokens,
        flops_dense=_interval([one.flops_dense for one in costs]), flops_executed=executed,
        seconds=over(executed, pace.flops_per_second) if executed and pace else None,
        extrapolation=extrapolation(fit, n_latents), law=fit.law, form=fit.form, speed=pace, noise=noise(fit),
        taken=fit.taken, rivals=_wider_rivals(fit),
    )  # fmt: skip


def check_size(n_latents: int, k: int) -> None:
    """Refuse a size that no SAE can have.

    Raises:
        ConfigError: not positive, or more latents kept than there are.
    """
    if n_latents < 1 or k < 1:
        raise ConfigError(f"n_latents = {n_latents}, k = {k}: both must be 1 or more", hint="Give whole numbers.")
    if k > n_latents:
        raise ConfigError(
            f"k = {k} is above n_latents = {n_latents}: an SAE keeps at most every latent",
            hint="Lower --k, or raise --n-latents.",
        )


def loss_fit(fits: Sequence[Fit], k: int) -> Fit:
    """Return the fit that predicts fvu at a k: L(N) at that k, else L(N,K).

    Raises:
        FitError: neither is there.
    """
    found = [fit for fit in fits if fit.law == "ln" and k in ks_of(fit)] + [fit for fit in fits if fit.law == "lnk"]
    if found:
        return found[0]
    known = ", ".join(str(one) for one in sorted({one for fit in fits for one in ks_of(fit)}))
    raise FitError(
        f"no fit speaks of k = {k}: L(N) is fitted at k = {known}, and L(N,K), which holds for every k, is not",
        hint=f"Ask for --k {known}, or give the sweep converged jobs at 3 sizes and 2 values of k or more.",
    )


def expected(fit: Fit, n_latents: float, k: int) -> Interval:
    """Return what a fit says at a size."""
    return predict(LAWS[fit.law], fit, x=n_latents, k=k)


def _wider_rivals(fit: Fit) -> tuple[str, ...]:
    """Return the forms that are not ruled out and have terms which the draws lack."""
    names = [form.name for form in LAWS[fit.law].forms]
    return tuple(name for name in rivals(fit.scores, fit.form) if names.index(name) > names.index(fit.taken))


def ks_of(fit: Fit) -> set[int]:
    """Return the k a fit was made from."""
    return {one.k for one in fit.residuals if one.k is not None}


def length(inputs: ForecastInputs, n_latents: int, k: int) -> Interval | None:
    """Return the tokens to convergence, by T(N) at the nearest k; None where there is no such fit."""
    fits = [(abs(math.log(other / k)), other, fit) for fit in inputs.lengths for other in ks_of(fit)]
    return expected(min(fits, key=lambda one: one[:2])[2], n_latents, k) if fits else None


def remarks_on_k(inputs: ForecastInputs, ks: Sequence[int]) -> list[str]:
    """Return a note on each k that no job was fitted at, or that L(N,K) does not hold for."""
    known = sorted({k for fit in inputs.losses for k in ks_of(fit)})
    counted = sorted({k for fit in inputs.lengths for k in ks_of(fit)})
    lines = []
    for k in dict.fromkeys(ks):
        if k not in known:
            near = min(counted, key=lambda other: (abs(math.log(other / k)), other), default=None)
            tokens = f", and its tokens are those of k = {near}" if near is not None else ""
            lines.append(f"k = {k} was not fitted ({', '.join(map(str, known))} were): its fvu is by L(N,K){tokens}.")
        if inputs.d_model is not None and k > inputs.d_model / 4:
            lines.append(
                f"k = {k} is above d_model / 4 = {inputs.d_model / 4:g}: L(N,K) holds for k well below d_model."
            )
    return lines


def stretch(rows: Sequence[JobMeasurement], *, epsilon: float = 0.01) -> Interval:
    """Return how many times their tokens to convergence the converged jobs were trained for, until the rule ended them.

    (1, 1, 1) where none tells.
    """
    counts = [(row.tokens_seen, row.tokens_to_convergence.get(epsilon)) for row in rows if row.outcome == "converged"]
    ratios = [seen / count for seen, count in counts if count]
    return spread(ratios) if ratios else Interval(1.0, 1.0, 1.0)


def cost(inputs: ForecastInputs, n_latents: int, k: int, tokens: int) -> Cost:
    """Return what so many tokens of a size cost, the subject's share among the executed FLOPs."""
    found = estimate(sized(inputs.config, n_latents, k, max_tokens=tokens), inputs.d_model)
    if found.flops_executed is None:
        return found
    return found._replace(flops_executed=found.flops_executed + subject_flops(inputs.rows) * tokens)


def sized(config: JobConfig, n_latents: int, k: int, *, max_tokens: int) -> JobConfig:
    """Return a config at another size and budget, of one batch at least."""
    sae = config.sae.model_copy(update={"n_latents": n_latents, "expansion": None, "k": k})
    tokens = max(max_tokens, config.training.batch_tokens)
    return config.model_copy(update={"sae": sae, "training": config.training.model_copy(update={"max_tokens": tokens})})


def extrapolation(fit: Fit, n_latents: int) -> float:
    """Return n over the largest n of a fit if it lies above, over the smallest if it lies below, else 1."""
    known = [one.x for one in fit.residuals if not one.censored]
    if not known:
        return math.inf
    smallest, largest = min(known), max(known)
    return n_latents / largest if n_latents > largest else n_latents / smallest if n_latents < smallest else 1.0


def noise(fit: Fit) -> float:
    """Return the standard deviation of ln fvu of one job around a law: between seeds, or of the residuals."""
    errors = [one.log_residual for one in fit.residuals if one.is_fitted and not one.censored]
    around = math.sqrt(sum(error**2 for error in errors) / max(1, len(errors) - len(fit.coefficients)))
    return max(_LEAST_NOISE, around, fit.seed_sigma or 0.0)


def times(left: Interval, right: Interval) -> Interval:
    """Return the product of two independent quantities: their relative errors add in quadrature."""
    value = left.value * right.value
    down = math.hypot(_log(left.value, left.low), _log(right.value, right.low))
    up = math.hypot(_log(left.high, left.value), _log(right.high, right.value))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def over(left: Interval, right: Interval) -> Interval:
    """Return the quotient of two independent quantities."""
    return times(left, Interval(1 / right.value, 1 / right.high, 1 / right.low))


def _log(upper: float, lower: float) -> float:
    """Return ln of a ratio, at most `_FARTHEST`, which is also that of an end at 0."""
    return min(_FARTHEST, math.log(upper) - math.log(lower)) if lower > 0 else _FARTHEST


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return Interval(*known) if len(known) == 3 else None
