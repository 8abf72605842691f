"""What a person can choose about a fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.curves.convergence import EPSILONS
from orchestrator.curves.point import Point
from orchestrator.errors import ConfigError
from orchestrator.scaling.types import JobMeasurement

Loss = Literal["fvu", "l_inf"]
Flops = Literal["dense", "executed", "subject+executed"]

GROUNDS = {"subject": "subjects", "hook": "hook points", "data": "texts", "activation": "activations"}
"""What must be the same for all jobs of a fit, by the field of JobMeasurement, with its plural."""


@dataclass(frozen=True)
class FitOptions:
    """What is fitted: which loss, which count of FLOPs, and which jobs."""

    epsilon: float = 0.01
    """Of tokens to convergence."""
    loss: Loss = "fvu"
    """The last fvu of a job's curve, or the limit L∞ of its tail."""
    flops: Flops = "dense"
    """What the axis of L(C) counts."""
    tokens: int | None = None
    """After how many tokens the laws at equal tokens compare; None: as many as every job with a result has."""
    subject: str | None = None
    hook: str | None = None
    data: str | None = None
    activation: str | None = None

    def loss_of(self, row: JobMeasurement) -> float | None:
        """Return the loss of a job."""
        return row.fvu if self.loss == "fvu" else row.l_inf

    def label(self) -> tuple[str, ...]:
        """Return what was chosen against the defaults, as parts of a group's name, such as `epsilon=0.02`.

        Which jobs were chosen is no part of it: a fit has fields of its own for what all its jobs share.
        """
        default = FitOptions()
        names = ("loss", "flops", "epsilon")
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return tuple(f"{name}={value:g}" if name == "epsilon" else f"{name}={value}" for name, value in values.items())


def options_of(
    *, epsilon: float, loss: str, flops: str, tokens: int | None = None, **grounds: str | None
) -> FitOptions:
    """Return the options of a fit from what a person typed.

    Raises:
        ConfigError: a value is not one of those that are allowed.
    """
    if epsilon not in EPSILONS:
        known = ", ".join(f"{value:g}" for value in EPSILONS)
        raise ConfigError(f"epsilon {epsilon:g} is not stored with jobs", hint=f"Choose one of {known}.")
    losses, units = {name: name for name in get_args(Loss)}, {name: name for name in get_args(Flops)}
    if loss not in losses or flops not in units:
        raise ConfigError(
            f"loss {loss!r}, flops {flops!r}", hint=f"Losses: {', '.join(losses)}; FLOPs: {', '.join(units)}."
        )
    return FitOptions(epsilon, losses[loss], units[flops], tokens, **grounds)


def flops_of(point: Point, flops: str) -> float:
    """Return the FLOPs spent up to a point of a curve, as one of `Flops` counts them."""
    if flops == "dense":
        return point.flops_dense
    return point.flops_executed + (point.flops_subject if flops == "subject+executed" else 0.0)


def check_jobs_exist(rows: Sequence[JobMeasurement], options: FitOptions) -> None:
    """Refuse a subject, hook point, text or activation that no job has.

    Raises:
        ConfigError: names those there are.
    """
    for name, plural in GROUNDS.items():
        wanted, there = getattr(options, name), sorted({getattr(row, name) for row in rows})
        if wanted is not None and there and wanted not in there:
            raise ConfigError(
                f"--{name}: no job is of {wanted!r}", hint=f"{plural.capitalize()}: {', '.join(map(repr, there))}."
            )
