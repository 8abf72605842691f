"""Losses of every token of a text under a patch, and the scores that follow from them, whole and by position."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worker.evaluation.bootstrap import ContextBootstrap, Statistic, ratio
from worker.evaluation.clean_pass import CleanBatch, CleanPass
from worker.evaluation.metric import Score
from worker.evaluation.token_losses import TokenLosses

Reconstruct = Callable[[CleanBatch], Float[Tensor, "batch context d_model"]]
"""Returns what is put in place of the activations of a batch."""
COLUMNS = ("n", "ce", "kl", "ce_clean", "ce_zero", "ce_mean", "kl_zero", "kl_mean")
"""Of the sums: n counts tokens, ce and kl are under the patch, the others do not depend on it."""
_CLEAN = {"ce_clean": "ce", "ce_zero": "ce_zero", "ce_mean": "ce_mean", "kl_zero": "kl_zero", "kl_mean": "kl_mean"}
"""Columns by their name in `CleanBatch.losses`."""


def _per_token(column: str, *, minus: str | None = None) -> Statistic:
    def statistic(sums: Tensor) -> Tensor:
        total = _column(sums, column)
        return (total if minus is None else total - _column(sums, minus)) / _column(sums, "n")

    return statistic


def _recovered(loss: str, baseline: str) -> Statistic:
    """Return (baseline − patched) / (baseline − clean); the KL of the clean model is 0."""

    def statistic(sums: Tensor) -> Tensor:
        clean = _column(sums, "ce_clean") if loss == "ce" else 0.0
        lost = _column(sums, f"{loss}_{baseline}")
        return (lost - _column(sums, loss)) / (lost - clean)

    return statistic


PATCHED: Mapping[tuple[str, str], Statistic] = {
    ("delta_ce", ""): _per_token("ce", minus="ce_clean"),
    ("kl", ""): _per_token("kl"),
}
"""By (metric, variant): what is given of every patch and every group of positions."""
OVERALL: Mapping[tuple[str, str], Statistic] = {
    **PATCHED,
    ("ce_patched", ""): _per_token("ce"),
    ("recovered_ce", ""): _recovered("ce", "zero"),
    ("recovered_ce", "mean"): _recovered("ce", "mean"),
    ("recovered_kl", ""): _recovered("kl", "zero"),
    ("recovered_kl", "mean"): _recovered("kl", "mean"),
}
BASELINES: Mapping[tuple[str, str], Statistic] = {
    **{(name, ""): _per_token(name) for name in COLUMNS[3:]},
    ("delta_ce", "zero ablation"): _per_token("ce_zero", minus="ce_clean"),
    ("delta_ce", "mean ablation"): _per_token("ce_mean", minus="ce_clean"),
}


@dataclass
class LossTable:
    """Losses of the predicted positions of a text, (n_contexts, predicted), by the names of `COLUMNS`."""

    clean: CleanPass
    values: dict[str, Float[Tensor, "n_contexts predicted"]] = field(default_factory=dict)

    def add(self, batch: CleanBatch, losses: TokenLosses) -> None:
        """Take the losses of a batch under the patch."""
        self._put(batch, "ce", losses.ce)
        self._put(batch, "kl", losses.kl)
        for column, name in _CLEAN.items():
            self._put(batch, column, batch.losses[name])

    def sums(self, is_in: Bool[Tensor, " predicted"]) -> Float[Tensor, "n_contexts columns"]:
        """Return the sums of each context over the positions of a group that count."""
        counted = self.clean.is_counted & is_in
        zero = torch.zeros((), dtype=torch.float64)
        parts = [torch.where(counted, self.values[name].double(), zero).sum(1) for name in COLUMNS[1:]]
        return torch.stack([counted.sum(1).double(), *parts], dim=1)

    def scores(
        self,
        statistics: Mapping[tuple[str, str], Statistic],
        bootstrap: ContextBootstrap,
        *,
        variant: str = "",
        groups: Mapping[str, Bool[Tensor, " predicted"]] | None = None,
    ) -> Iterator[Score]:
        """Yield scores of groups of positions, by default of all; those of which no token counts are left out."""
        for group, is_in in (groups or {"": torch.ones(self.clean.is_counted.shape[1], dtype=torch.bool)}).items():
            sums = self.sums(is_in)
            n = int(sums[:, 0].sum())
            resampled = bootstrap(sums)
            for (metric, own), statistic in statistics.items() if n else ():
                named = ", ".join(part for part in (variant, own, group) if part)
                yield resampled.estimate(statistic).score(metric, named, n=n)

    def _put(self, batch: CleanBatch, column: str, losses: Tensor) -> None:
        if column not in self.values:
            self.values[column] = torch.zeros(self.clean.is_counted.shape)
        self.values[column][batch.rows] = losses.cpu()


def measure_patch(clean: CleanPass, reconstruct: Reconstruct, *, phase: str = "patched model") -> LossTable:
    """Return the losses of a text with the activations of each batch replaced by any reconstruction of them."""
    table = LossTable(clean)
    for batch in clean.batches(phase):
        table.add(batch, clean.losses(batch, reconstruct(batch)))
    return table


def position_groups(length: int) -> dict[str, Bool[Tensor, " length"]]:
    """Return the groups of positions: all, the first, the rest, and buckets whose bounds double."""
    position = torch.arange(length)
    groups = {"": position >= 0, "first": position == 0, "rest": position > 0}
    start = 1
    while start < length:
        last = min(2 * start, length) - 1
        name = f"positions={start}" if last == start else f"positions={start}-{last}"
        groups[name] = (start <= position) & (position <= last)
        start *= 2
    return groups


def ratio_scores(
    metric: str,
    parts: Sequence[Float[Tensor, "n_contexts length"]],
    bootstrap: ContextBootstrap,
    *,
    variant: str = "",
    groups: Mapping[str, Bool[Tensor, " length"]] | None = None,
) -> Iterator[Score]:
    """Yield Σ first / Σ second, n = Σ third, of each group of positions, by default of all."""
    for group, is_in in (groups or {"": torch.ones(parts[0].shape[1], dtype=torch.bool)}).items():
        sums = torch.stack([part[:, is_in].double().sum(1) for part in parts], dim=1)
        n = int(sums[:, 2].sum())
        if n:
            named = ", ".join(part for part in (variant, group) if part)
            yield bootstrap(sums).estimate(ratio).score(metric, named, n=n)


def _column(sums: Tensor, name: str) -> Tensor:
    return sums[..., COLUMNS.index(name)]
