"""The forms of the laws. Each is loss = exp(power terms) + exp(floor terms), linear in its parameters within each exp.

Source: numerics 7. x is what the law's axis counts, z its second variable (k, or the size of the subject).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.intp]
Term = Literal["1", "x", "z", "xz"]
Kind = Literal["as is", "exp", "minus"]
"""How a parameter becomes the coefficient that is printed: A is exp of an intercept, α the slope's negative."""


class Form(NamedTuple):
    """One form of a law."""

    name: str
    """pure, +e, +e(k) or +e(s)."""
    power: tuple[Term, ...]
    floor: tuple[Term, ...]
    names: tuple[str, ...]
    """Of the coefficients, power terms first."""
    kinds: tuple[Kind, ...]
    equation: str

    @property
    def size(self) -> int:
        """Return the number of coefficients."""
        return len(self.names)


class Design(NamedTuple):
    """The regressors of n points under a form."""

    power: Array
    """(n_points, power terms)."""
    floor: Array
    """(n_points, floor terms)."""


LINE: tuple[Term, ...] = ("1", "x")
PLANE: tuple[Term, ...] = ("1", "z", "x", "xz")


def surface_forms(z: str) -> tuple[Form, ...]:
    """Return the forms of a law of n and a second variable of this symbol."""
    names = ("alpha", f"beta_{z}", "beta_n", "gamma")
    plain: tuple[Kind, ...] = ("as is",) * 4
    power = f"exp(alpha + beta_{z}·ln {z} + beta_n·ln n + gamma·ln {z}·ln n)"
    flat, tilted = (*plain, "as is"), (*plain, "as is", "as is")
    return (
        Form("pure", PLANE, (), names, plain, f"fvu = {power}"),
        Form("+e", PLANE, ("1",), (*names, "zeta"), flat, f"fvu = {power} + exp(zeta)"),
        Form(f"+e({z})", PLANE, ("1", "z"), (*names, "zeta", "eta"), tilted,
             f"fvu = {power} + exp(zeta + eta·ln {z})"),
    )  # fmt: skip


def design(form: Form, x: Array, z: Array) -> Design:
    """Return the regressors of points at x and z, both positive, shape (n_points,)."""
    log_x, log_z = np.log(x), np.log(z)
    columns = {"1": np.ones_like(log_x), "x": log_x, "z": log_z, "xz": log_x * log_z}

    def stacked(terms: Sequence[Term]) -> Array:
        return np.stack([columns[term] for term in terms], axis=1) if terms else np.empty((len(log_x), 0))

    return Design(stacked(form.power), stacked(form.floor))


def exponents(form: Form, theta: Array, z: Array) -> Array:
    """Return the exponent in x that fits, (n_fits, size), have at each z, (n_points,): (n_fits, n_points)."""
    columns = {"1": np.zeros_like(z), "z": np.zeros_like(z), "x": np.ones_like(z), "xz": np.log(z)}
    return np.asarray(theta[:, : len(form.power)] @ np.stack([columns[term] for term in form.power]))


def log_values(theta: Array, points: Design) -> tuple[Array, Array]:
    """Return ln of the law and the share of the floor in it, for parameters of shape (n_fits, size).

    Shapes: both (n_fits, n_points).
    """
    n_power = points.power.shape[1]
    power = theta[:, :n_power] @ points.power.T
    if not points.floor.shape[1]:
        return power, np.zeros_like(power)
    floor = theta[:, n_power:] @ points.floor.T
    # By hand: np.logaddexp is three times slower, and this is most of a bootstrap's time.
    gap = np.clip(floor - power, -700.0, 700.0)
    with np.errstate(under="ignore"):
        grown = np.exp(gap)
        return power + np.log1p(grown), grown / (1.0 + grown)


def coefficients(form: Form, theta: Array) -> Array:
    """Return the coefficients that are printed, from parameters of shape (..., size)."""
    turned = np.array(theta, dtype=float)
    for at, kind in enumerate(form.kinds):
        if kind == "exp":
            with np.errstate(under="ignore", over="ignore"):
                turned[..., at] = np.exp(turned[..., at])
        elif kind == "minus":
            turned[..., at] = -turned[..., at]
    return turned


def parameters(form: Form, values: Array) -> Array:
    """Return the parameters behind coefficients of shape (..., size); an e of 0 becomes one that no loss feels."""
    turned = np.array(values, dtype=float)
    for at, kind in enumerate(form.kinds):
        if kind == "exp":
            turned[..., at] = np.log(np.maximum(turned[..., at], 1e-300))
        elif kind == "minus":
            turned[..., at] = -turned[..., at]
    return turned
