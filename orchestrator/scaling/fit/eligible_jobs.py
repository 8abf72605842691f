"""Which jobs a law may be fitted to, and why the others not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.curves.convergence import EPSILONS
from orchestrator.errors import ConfigError, FitError
from orchestrator.scaling.types import Excluded, JobMeasurement, LawName

Loss = Literal["fvu", "l_inf"]
Flops = Literal["dense", "executed", "subject+executed"]
GROUNDS = ("subject", "hook", "data", "activation")
"""What must be one and the same for all jobs of a fit."""


@dataclass(frozen=True)
class FitOptions:
    """What a person can choose about a fit."""

    epsilon: float = 0.01
    """Of tokens to convergence."""
    loss: Loss = "fvu"
    """The last fvu of a job's curve, or the limit L∞ of its tail."""
    flops: Flops = "dense"
    """What the axis of L(C) counts."""
    subject: str | None = None
    hook: str | None = None
    data: str | None = None
    activation: str | None = None

    def loss_of(self, row: JobMeasurement) -> float | None:
        """Return the loss of a job."""
        return row.fvu if self.loss == "fvu" else row.l_inf

    def label(self) -> tuple[str, ...]:
        """Return what was chosen against the defaults, as parts of a group's name."""
        grounds = [(name, getattr(self, name)) for name in GROUNDS if name != "subject"]
        own = [("loss", "l_inf" if self.loss == "l_inf" else None), ("flops", _unless(self.flops, "dense"))]
        epsilon = [("epsilon", f"{self.epsilon:g}" if self.epsilon != 0.01 else None)]
        return tuple(f"{name}={value}" for name, value in (*own, *epsilon, *grounds) if value is not None)


def choose(*, epsilon: float, loss: str, flops: str, **grounds: str | None) -> FitOptions:
    """Return choices from what a person typed.

    Raises:
        ConfigError: one of them is not to be had.
    """
    if epsilon not in EPSILONS:
        told = ", ".join(f"{one:g}" for one in EPSILONS)
        raise ConfigError(f"epsilon {epsilon:g} is not stored with jobs", hint=f"Choose one of {told}.")
    losses, units = {name: name for name in get_args(Loss)}, {name: name for name in get_args(Flops)}
    if loss not in losses or flops not in units:
        raise ConfigError(
            f"loss {loss!r}, flops {flops!r}", hint=f"Losses: {', '.join(losses)}; FLOPs: {', '.join(units)}."
        )
    return FitOptions(epsilon, losses[loss], units[flops], **grounds)


def check_chosen(rows: Sequence[JobMeasurement], choices: FitOptions) -> None:
    """Refuse a subject, hook point, text or activation that no job has.

    Raises:
        ConfigError: names those there are.
    """
    for name in GROUNDS:
        wanted, there = getattr(choices, name), sorted({getattr(row, name) for row in rows})
        if wanted is not None and there and wanted not in there:
            raise ConfigError(
                f"--{name}: no job is of {wanted!r}",
                hint=f"{_plural(name).capitalize()}: {', '.join(map(repr, there))}.",
            )


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


def sort_out(
    law: LawName, rows: Sequence[JobMeasurement], choices: FitOptions
) -> tuple[list[JobMeasurement], list[Excluded]]:
    """Return the jobs a law may use, and the others with the reason.

    Raises:
        FitError: jobs of several subjects, hook points, texts or activations, and none of them chosen.
    """
    kept, excluded, seen = [], [], dict[str, int]()
    for row in rows:
        why = _elsewhere(row, choices) or _twice(row, seen) or unfit(law, row, choices)
        if why:
            excluded.append(Excluded(row.job_id, why))
        else:
            kept.append(row)
            seen[row.config_id] = row.job_id
    _check_grounds(law, kept)
    return kept, excluded


def unfit(law: LawName, row: JobMeasurement, choices: FitOptions) -> str:
    """Return why a law cannot use a job; empty where it can."""
    if law == "lc":
        return _without_curve(row)
    if row.state != "succeeded":
        return _not_ended(row)
    if row.n_latents is None:
        return "its number of latents is not known: no attempt has told"
    if law == "lr":
        return "" if row.lr is not None else "its learning rate is not known: no attempt has told"
    if row.outcome == "diverged":
        return "it diverged"
    if law == "tn":
        return _without_count(row, choices.epsilon) or _without_loss(row, choices)
    if row.outcome != "converged":
        return f"not converged: it reached its budget of {row.max_tokens} tokens"
    if law == "ls" and row.subject_size is None:
        return "the size of its subject is not known: no attempt has told"
    if law == "lnk" and row.d_model is not None and row.k > row.d_model / 4:
        return f"k = {row.k} is above d_model / 4 = {row.d_model / 4:g}: the law holds for k well below d_model"
    return _without_loss(row, choices)


def is_dead(row: JobMeasurement) -> bool:
    """Say whether an SAE explains no more than the mean does."""
    return row.fvu is not None and row.fvu >= 1


def _not_ended(row: JobMeasurement) -> str:
    if row.state == "failed":
        return f"it failed: {row.reason}" if row.reason else "it failed"
    return "it was cancelled" if row.state == "cancelled" else f"it has not ended ({row.state})"


def _without_loss(row: JobMeasurement, choices: FitOptions) -> str:
    if not row.curve and row.fvu is None:
        return "no curve is stored of it"
    loss = choices.loss_of(row)
    if loss is None or not math.isfinite(loss):
        return "its L∞ is not settled" if choices.loss == "l_inf" else "its last loss is not a number"
    if is_dead(row):
        return f"a dead SAE: fvu {row.fvu:.4g} is no better than the mean"
    return "" if loss > 0 else f"its loss is {loss:g}: nothing is left to be explained"


def _without_count(row: JobMeasurement, epsilon: float) -> str:
    known = row.tokens_to_convergence.get(epsilon) or row.tokens_lower_bound.get(epsilon)
    return "" if known else f"no tokens to convergence at epsilon {epsilon:g} are stored of it"


def _without_curve(row: JobMeasurement) -> str:
    if not row.curve:
        return "no curve is stored of it"
    if row.n_latents is None:
        return "its number of latents is not known: no attempt has told"
    if not any(math.isfinite(point.fvu) and 0 < point.fvu < 1 for point in row.curve):
        return "no point of its curve is below 1"
    return ""


def _elsewhere(row: JobMeasurement, choices: FitOptions) -> str:
    for name in GROUNDS:
        wanted = getattr(choices, name)
        if wanted is not None and getattr(row, name) != wanted:
            return f"another {name}: {getattr(row, name)}"
    return ""


def _twice(row: JobMeasurement, seen: dict[str, int]) -> str:
    return f"the same config as job {seen[row.config_id]}" if row.config_id in seen else ""


def _check_grounds(law: LawName, rows: Sequence[JobMeasurement]) -> None:
    """Refuse a mixture; L_s(N) compares subjects, each at a hook point of its own."""
    names = ("data", "activation") if law == "ls" else GROUNDS
    for name in names:
        jobs: dict[str, list[int]] = {}
        for row in rows:
            jobs.setdefault(getattr(row, name), []).append(row.job_id)
        if len(jobs) > 1:
            told = "; ".join(f"{value} ({len(ids)} jobs, such as {ids[0]})" for value, ids in sorted(jobs.items()))
            option = f"Choose one: --{name} {next(iter(sorted(jobs)))!r}"
            more = ", or compare the subjects: --law ls" if name == "subject" else ""
            raise FitError(f"these jobs mix {_plural(name)}: {told}", hint=option + more)


def _plural(name: str) -> str:
    return {"subject": "subjects", "hook": "hook points", "data": "texts", "activation": "activations"}[name]
