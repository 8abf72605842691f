"""The share of its pretraining compute at which a language model would have the cross-entropy of a patched one.

Two ways: along the checkpoints of the same model, and along the law of its family. Both are monotone, and 1 where
nothing was lost. The first says too much where checkpoints were taken before the learning rate fell (it overstates
the compute that their loss needs).
Source: Gao et al. 2024, section 4.1, names the share and not the mapping; these are ours.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, least_squares

Array = NDArray[np.float64]


class ComputeCurve(NamedTuple):
    """Cross-entropy by pretraining compute, never rising."""

    log_compute: Array
    """Rising."""
    ce: Array
    """Falling."""

    @classmethod
    def of(cls, compute: Array, ce: Array) -> "ComputeCurve":
        """Smooth checkpoints by isotonic regression in ln C; of equal losses the first to reach them is kept."""
        order = np.argsort(compute, kind="stable")
        smooth = np.asarray(isotonic_regression(ce[order], increasing=False).x)
        first = np.concatenate([[True], np.diff(smooth) < 0])
        return cls(np.log(compute[order][first]), smooth[first])

    def reaches(self, ce: Array) -> NDArray[np.bool_]:
        """Say whether losses lie within the curve: beyond its ends it says no more than that."""
        return np.asarray((self.ce[-1] <= ce) & (ce <= self.ce[0]))

    def share(self, ce: Array, *, clean: Array) -> Array:
        """Return C(ce) / C(clean), C the curve's inverse, linear in ln C; beyond the ends that of the end."""
        return np.exp(self._log_compute(ce) - self._log_compute(clean))

    def _log_compute(self, ce: Array) -> Array:
        return np.asarray(np.interp(-ce, -self.ce, self.log_compute), dtype=np.float64)


class ComputeLaw(NamedTuple):
    """CE = E + A·C^−α."""

    e: float
    a: float
    """NaN where the law was given without it: a share does not depend on it."""
    alpha: float

    @classmethod
    def fit(cls, compute: Array, ce: Array) -> "ComputeLaw":
        """Fit models of one family by least squares of the relative error, E ≥ 0; C in units of its geometric mean."""
        unit = float(np.exp(np.log(compute).mean()))
        log_c = np.log(compute / unit)
        slope = max(1e-3, -np.polyfit(log_c, np.log(ce), 1)[0])

        def misfit(theta: Array) -> Array:
            found: Array = (theta[0] + np.exp(theta[1] - theta[2] * log_c)) / ce - 1
            return found

        starts = [(share * ce.min(), np.log(ce.mean() - share * ce.min()), slope / (1 - share)) for share in (0.1, 0.9)]
        bounds = ([0.0, -np.inf, 1e-6], [float(ce.min()), np.inf, np.inf])
        found = [least_squares(misfit, start, bounds=bounds, x_scale="jac", xtol=1e-12, ftol=1e-12) for start in starts]
        e, log_a, alpha = min(found, key=lambda one: float(one.cost)).x
        return cls(float(e), float(np.exp(log_a)) * unit ** float(alpha), float(alpha))

    def share(self, ce: Array, *, clean: Array) -> Array:
        """Return C(ce) / C(clean) = ((ce − E) / (clean − E))^(−1/α); NaN where the clean loss is not above E."""
        above = np.where(clean > self.e, clean - self.e, np.nan)
        return np.asarray(np.maximum((ce - self.e) / above, 1e-12) ** (-1 / self.alpha))
