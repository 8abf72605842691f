"""Jobs by cell (one n and k, of one subject): which learning rate is best there, and what converges."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestrator.scaling.eligibility import Choices, is_dead
from orchestrator.scaling.findings import Excluded, Measured


class Cell(NamedTuple):
    """What jobs have in common that differ in seed and learning rate alone."""

    subject: str
    n_latents: int
    k: int


Rate = float | None
"""A learning rate to six digits; None where no attempt has told it."""


def by_cell(rows: Iterable[Measured]) -> dict[Cell, list[Measured]]:
    """Return jobs by subject, n and k, in that order."""
    found: dict[Cell, list[Measured]] = defaultdict(list)
    for row in rows:
        found[Cell(row.subject, row.n_latents or 0, row.k)].append(row)
    return dict(sorted(found.items()))


def by_rate(rows: Iterable[Measured]) -> dict[Rate, list[Measured]]:
    """Return jobs by learning rate, the smallest first."""
    found: dict[Rate, list[Measured]] = defaultdict(list)
    for row in rows:
        found[None if row.lr is None else float(f"{row.lr:.6g}")].append(row)
    return dict(sorted(found.items(), key=lambda pair: pair[0] or 0.0))


def mean_loss(rows: Sequence[Measured], choices: Choices) -> float:
    """Return the mean loss over seeds; infinite where none is known."""
    losses = [loss for row in rows if (loss := choices.loss_of(row)) is not None]
    return sum(losses) / len(losses) if losses else float("inf")


def best(rows: Sequence[Measured], choices: Choices) -> tuple[list[Measured], list[Excluded]]:
    """Return the jobs with the best learning rate of their cell, and the others with the reason."""
    kept, excluded = [], []
    for cell, inside in by_cell(rows).items():
        rates = by_rate(inside)
        rate = min(rates, key=lambda one: mean_loss(rates[one], choices))
        loss = mean_loss(rates[rate], choices)
        kept += rates[rate]
        why = f"not the best lr at n = {cell.n_latents}, k = {cell.k}: {_told(rate)} has {choices.loss} {loss:.4g}"
        excluded += [Excluded(row.job_id, why) for other in rates if other != rate for row in rates[other]]
    return kept, excluded


def converges(rows: Sequence[Measured]) -> bool:
    """Say whether every seed of one learning rate converged to more than the mean."""
    return all(row.outcome == "converged" and not is_dead(row) for row in rows)


def _told(rate: Rate) -> str:
    return "lr unknown" if rate is None else f"lr {rate:g}"
