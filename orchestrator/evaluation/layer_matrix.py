"""Scores by layer: of each SAE and metric a row, of each layer a column, and the mean and variation over them."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.evaluation.layer_variants import (
    MATRIX_METRICS,
    MEAN,
    VARIATION,
    OverLayers,
    over_shown,
    read_variant,
)
from orchestrator.evaluation.scores import CONDITIONS, ScoreEntry

_MEASURED = ("measured_on", "measured_with")
_OWN = (*CONDITIONS, "metric", "variant")
_PARTS = ("std_error", "low", "high")


def by_layer(rows: Sequence[ScoreEntry], *, variants: bool = False) -> list[dict[str, Any]]:
    """Return a row for each SAE, text, options and metric measured at layers; with `variants` for each variant, too.

    `rows` come with those that newer ones stand for (`replaced` of `scores`), the newest last: those of one row are of
    as many tokens, of the number at which most layers were measured; of several such the newest.
    Its columns: what tells the SAE and the score apart, then `layer_3` for each layer that any row has, `mean` and
    `cv`, and beside each how sure it is, as `layer_3_std_error`, `layer_3_low` and `layer_3_high`.
    """
    told = [(row, said) for row in rows if (said := read_variant(row.variant)) and (variants or not said.variant)]
    layers = sorted({said.layer for _, said in told if said.layer is not None})
    columns = [*(f"layer_{layer}" for layer in layers), "mean", "cv"]
    empty = dict.fromkeys(name for column in columns for name in (column, *(f"{column}_{part}" for part in _PARTS)))
    found: dict[Any, dict[str, Any]] = {}
    means: dict[Any, ScoreEntry] = {}
    newest: dict[Any, int] = {}
    for row, said in told:
        how = (row.measured_on, row.measured_with, row.is_stale, row.tokens)
        key = (row.metric, said.variant, row.sae_id, *how)
        own = {name: getattr(row, name) for name in _OWN} | {"variant": said.variant}
        values, column = found.setdefault(key, own | empty), _column(said)
        values |= {column: row.value} | {f"{column}_{part}": getattr(row, part) for part in _PARTS}
        newest[key] = max(row.job_id, newest.get(key, 0))
        if said.over == MEAN:
            means[key] = row
    for key, mean in means.items():
        _of_layers_shown(found[key], layers, mean)
    n_layers = {key: sum(values[f"layer_{layer}"] is not None for layer in layers) for key, values in found.items()}
    # Of those that differ in the number of tokens alone, the last one in this order stays.
    chosen = {key[:-1]: key for key in sorted(found, key=lambda key: (n_layers[key], newest[key]))}
    kept = [key for key in found if chosen[key[:-1]] == key]
    order = list(dict.fromkeys(key[:2] for key in sorted(kept, key=_rank)))
    return [found[key] for key in sorted(kept, key=lambda key: order.index(key[:2]))]


def _of_layers_shown(values: dict[str, Any], layers: Sequence[int], mean: ScoreEntry) -> None:
    """Put the mean and the variation of the layers in a row in the place of those of other layers."""
    shown = {layer: value for layer in layers if (value := values[f"layer_{layer}"]) is not None}
    found = over_shown(shown, (mean.details or {}).get("layers", ()))
    if found is not None:
        for column, over in (("mean", MEAN), ("cv", VARIATION)):
            values |= dict.fromkeys(f"{column}_{part}" for part in _PARTS) | {column: found.get(over)}


def main_matrix(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the main metrics; all where there are none of these."""
    return [row for row in rows if row["metric"] in MATRIX_METRICS] or list(rows)


def lowest(rows: Sequence[Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    """Return the rows whose score is the lowest in a column: of those alike in metric, text, model, n and k.

    Only of metrics of which lower is better, and where there are several.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] in MATRIX_METRICS and row[column] is not None:
            key = tuple(row[name] for name in ("metric", "variant", *_MEASURED, "tokens", "subject"))
            groups.setdefault((*key, row["n_latents"], row["k"]), []).append(row)
    return [min(alike, key=lambda row: float(row[column])) for alike in groups.values() if len(alike) > 1]


def _column(said: OverLayers) -> str:
    if said.layer is not None:
        return f"layer_{said.layer}"
    return "mean" if said.over == MEAN else "cv"


def _rank(key: tuple[Any, ...]) -> int:
    return MATRIX_METRICS.index(key[0]) if key[0] in MATRIX_METRICS else len(MATRIX_METRICS)
