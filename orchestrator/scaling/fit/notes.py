"""What a reader must know of a fit, in sentences, and the spread between seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.estimate import CLIP, Estimate
from orchestrator.scaling.fit.predict import HIGH, LOW
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, Form, coefficients
from orchestrator.scaling.law import Law

_IN_THE_FORM = {"pure": "Without an irreducible term", "+e": "With one irreducible term e"}


class Refitted(NamedTuple):
    """A form with the coefficients of its refits."""

    form: Form
    drawn: Array
    """(n_refits, size)."""


def notes_on(
    law: Law, sample: Sample, tried: Sequence[Estimate], at: int, *, irreducible: tuple[float, float] | None,
    preferred: Refitted | None,
) -> tuple[str, ...]:  # fmt: skip
    """Return what must be said beside the numbers of the form `at`; `preferred` is AICc's, with its refits."""
    found = [*sample.notes, *_exponent_by_form(law, tried, at, preferred), *_exponent_by_second(law, sample, tried[at])]
    if any(not one.converged for one in tried):
        names = ", ".join(one.form.name for one in tried if not one.converged)
        found.append(f"The fit of the form {names} has not converged to the last digit.")
    if irreducible is not None and law.second is not None and "z" in tried[at].form.floor:
        centre, name = math.exp(float(np.mean(np.log(sample.z)))), law.second.words
        found.append(f"The profile interval is of the irreducible term at {name} = {centre:.3g}, the geometric mean.")
    if irreducible is not None and irreducible[0] == 0:
        found.append("The profile of the irreducible term reaches 0: these jobs do not settle whether there is one.")
    bounds = sum(one.censored for one in sample.observations)
    if bounds:
        found.append(f"{bounds} of {len(sample.observations)} points are bounds: the truth is above them.")
    if len(tried) == 1 and len(law.forms) > 1:
        found.append("With so few points only the form without an irreducible term can be judged.")
    return tuple(found)


def seed_sigma(sample: Sample) -> float | None:
    """Return the standard deviation of ln(loss) between seeds of one cell, pooled, the deviations clipped.

    None where no two are there.
    """
    cells: dict[tuple[float, float], list[float]] = {}
    for one in sample.observations:
        if not one.censored:
            cells.setdefault(one.cell, []).append(math.log(one.value))
    repeated = [values for values in cells.values() if len(values) > 1]
    is_over_compute = any(one.x != one.cell[0] for one in sample.observations[:1])  # points of one curve are no seeds
    if not repeated or is_over_compute:
        return None
    off = np.concatenate([np.array(values) - np.mean(values) for values in repeated])
    most = CLIP * 1.4826 * float(np.median(np.abs(off))) * math.sqrt(2)  # of two seeds each is off by σ/√2
    freedom = sum(len(values) - 1 for values in repeated)
    return math.sqrt(float(np.sum(np.clip(off, -most, most) ** 2)) / freedom)


def _exponent_by_form(law: Law, tried: Sequence[Estimate], at: int, preferred: Refitted | None) -> list[str]:
    """Say what the exponent would have been in the other forms: it means nothing without its form."""
    lines = []
    for number, one in enumerate(tried):
        if number == at:
            continue
        place = one.form.names.index(law.exponent)
        value = f"{coefficients(one.form, one.theta)[place]:.3f}"
        if preferred is not None and one.form is preferred.form and len(preferred.drawn):
            low, high = np.quantile(preferred.drawn[:, place], [LOW, HIGH])
            value += f" ({low:.3f} to {high:.3f})"
        where = _IN_THE_FORM.get(one.form.name, f"In the form {one.form.name}")
        lines.append(f"{where} {law.exponent} would be {value}.")
    return lines


def _exponent_by_second(law: Law, sample: Sample, found: Estimate) -> list[str]:
    """Say the exponent in n at each value of the law's second variable."""
    if law.second is None:
        return []
    values = dict(zip(found.form.names, found.theta.tolist(), strict=True))
    names = {one.z: law.second.label(one) for one in sample.observations}
    slopes = [f"{values['beta_n'] + values['gamma'] * math.log(z):.3f} at {name}" for z, name in sorted(names.items())]
    return [f"The exponent in n is {', '.join(slopes)}."]
