"""What a reader must know of a fit, in sentences, and the spread between seeds."""

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.scaling.fit.estimate import Estimate
from orchestrator.scaling.fit.predict import HIGH, LOW
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, coefficients
from orchestrator.scaling.types import LawName

_EXPONENTS: dict[LawName, str] = {"ln": "b", "lc": "alpha", "lnk": "gamma", "ls": "gamma"}


def remarks(
    law: LawName, sample: Sample, tried: Sequence[Estimate], at: int, *, irreducible: tuple[float, float] | None,
    wider: Array | None,
) -> tuple[str, ...]:  # fmt: skip
    """Return what must be said beside the numbers; `wider` are refits of the form after the chosen one."""
    found = [*sample.notes, *_other_form(law, tried, at, wider), *_slopes(law, sample, tried[at])]
    if any(not one.converged for one in tried):
        names = ", ".join(one.form.name for one in tried if not one.converged)
        found.append(f"The fit of the form {names} has not converged to the last digit.")
    if irreducible is not None and "z" in tried[at].form.floor:
        middle, name = math.exp(float(np.mean(np.log(sample.z)))), "k" if law == "lnk" else "the subject's size"
        found.append(f"The profile interval is of the irreducible term at {name} = {middle:.3g}, the geometric mean.")
    if irreducible is not None and irreducible[0] == 0:
        found.append("The profile of the irreducible term reaches 0: these jobs do not settle whether there is one.")
    bounds = sum(one.censored for one in sample.observations)
    if bounds:
        found.append(f"{bounds} of {len(sample.observations)} points are bounds: the truth is above them.")
    if len(tried) == 1 and law in _EXPONENTS:
        found.append("With so few points only the form without an irreducible term can be judged.")
    return tuple(found)


def seed_sigma(sample: Sample) -> float | None:
    """Return the standard deviation of ln(loss) between seeds of one cell; None where no two are there."""
    cells: dict[tuple[float, float], list[float]] = {}
    for one in sample.observations:
        if not one.censored:
            cells.setdefault(one.cell, []).append(math.log(one.value))
    groups = [values for values in cells.values() if len(values) > 1]
    if not groups or sample.observations[0].x != sample.observations[0].cell[0]:
        return None
    surplus = sum(len(values) - 1 for values in groups)
    return math.sqrt(sum(float(np.var(values)) * len(values) for values in groups) / surplus)


def _other_form(law: LawName, tried: Sequence[Estimate], at: int, wider: Array | None) -> list[str]:
    """Say what the exponent would have been in the other forms: it means nothing without its form."""
    name = _EXPONENTS.get(law)
    if name is None:
        return []
    told = []
    for number, one in enumerate(tried):
        if number != at:
            place = one.form.names.index(name)
            value = f"{coefficients(one.form, one.theta)[place]:.3f}"
            if number == at + 1 and wider is not None and len(wider):
                value += " ({:.3f} to {:.3f})".format(*np.quantile(wider[:, place], [LOW, HIGH]))
            form = {"pure": "Without an irreducible term", "+e": "With one irreducible term e"}
            told.append(f"{form.get(one.form.name, f'In the form {one.form.name}')} {name} would be {value}.")
    return told


def _slopes(law: LawName, sample: Sample, found: Estimate) -> list[str]:
    """Say the exponent in n at each k, or of each subject, of a law where it depends on that."""
    if law not in ("lnk", "ls"):
        return []
    values = dict(zip(found.form.names, found.theta.tolist(), strict=True))
    seconds = {
        one.z: (f"k = {one.k}" if law == "lnk" else f"{one.subject} ({one.z:g} parameters)")
        for one in sample.observations
    }
    told = [f"{values['beta_n'] + values['gamma'] * math.log(z):.3f} at {name}" for z, name in sorted(seconds.items())]
    return [f"The exponent in n is {', '.join(told)}."]
