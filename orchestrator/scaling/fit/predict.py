"""What a fit says at a size that may never have been trained, with its interval."""

from collections.abc import Sequence

import numpy as np

from orchestrator.errors import ConfigError
from orchestrator.formatting import Interval
from orchestrator.scaling.forms import Array, Form, design, log_values, parameters
from orchestrator.scaling.law import Law
from orchestrator.scaling.types import Fit

LOW, HIGH = 0.05, 0.95
"""Quantiles of the 90% interval."""


def predict(law: Law, fit: Fit, *, x: float, k: int | None = None, subject_size: float | None = None) -> Interval:
    """Return a law's value at x (latents; FLOPs for L(C)), as a fit of it says, with the 90% interval of its draws.

    `k` is needed by L(N,K) alone, `subject_size` by L_s(N) alone. The interval is of the law, not of a job's loss,
    which also has the noise between seeds.

    Raises:
        ConfigError: x, k or the subject's size is missing or not positive.
    """
    return band(law, fit, [x], k, subject_size=subject_size)[0]


def band(
    law: Law, fit: Fit, xs: Sequence[float], k: int | None = None, *, subject_size: float | None = None
) -> list[Interval]:
    """Return a law's value at each x, as a fit of it says, with the 90% interval of its draws.

    Raises:
        ConfigError: an x, k or the subject's size is missing or not positive.
    """
    second = _second(law, k, subject_size)
    if not all(x > 0 and np.isfinite(x) for x in xs) or not second > 0:
        raise ConfigError(f"{law.key} is a law of positive sizes", hint="Give sizes above 0.")
    coefficients = [tuple(one.value for one in fit.coefficients.values())]
    values = np.exp(_logs(law.form(fit.form), coefficients, xs, second))[0]
    if not fit.draws:
        return [Interval(float(value), float(value), float(value)) for value in values]
    drawn = np.exp(_logs(law.form(fit.taken), fit.draws, xs, second))
    # The draws may have a term that the chosen form lacks: its value is within the interval all the same.
    low, high = np.quantile(drawn, [LOW, HIGH], axis=0)
    ends = np.minimum(low, values), np.maximum(high, values)
    return [Interval(*map(float, found)) for found in zip(values, *ends, strict=True)]


def _logs(form: Form, rows: Sequence[Sequence[float]], xs: Sequence[float], second: float) -> Array:
    """Return ln of a form at each x, for rows of its coefficients: (n_rows, n_xs)."""
    points = design(form, np.asarray(xs, dtype=float), np.full(len(xs), float(second)))
    return log_values(parameters(form, np.asarray(rows, dtype=float)), points)[0]


def _second(law: Law, k: int | None, subject_size: float | None) -> float:
    """Return the value of a law's second variable; 1 where it has none."""
    if law.second is None:
        return 1.0
    name = law.second.argument
    value = {"k": k, "subject_size": subject_size}[name]
    if value is None:
        raise ConfigError(f"{law.key} needs {name}", hint=f"Say for which {name} to predict.")
    return float(value)
