"""Figures of SAEs of several layers: at which layers their latents are active, and how alike the layers are."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.formatting import Interval, digits, tick, whole
from orchestrator.scaling.plots.canvas import Drawing, Pen, Sheet, at_layers, at_sizes, linear, pens
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.plots.sampling import told
from orchestrator.scaling.plots.score_plots import ScoreAxis, grouped, score_panels, series_of
from orchestrator.scaling.types import JobMeasurement

if TYPE_CHECKING:
    pass

Rows = Sequence[JobMeasurement]
MAPS, PROMPT = "layer_mean", "prompt_latents"
"""Metrics whose details have a heat map, of a text and of a prompt."""
MOST_MAPS = 9
SCORES: dict[str, ScoreAxis] = {
    "var_ratio_latent": ScoreAxis("E Var(L | J) / Var(L)"),
    "var_ratio_token": ScoreAxis("E Var(L | J, T) / E Var(L | J)"),
    "var_ratio_latent as released": ScoreAxis("first ratio, as released"),
    "var_ratio_token as released": ScoreAxis("second ratio, as released"),
    "layer_std relative": ScoreAxis("mean std(L | j) / layers"),
    "layer_entropy relative": ScoreAxis("mean entropy of P(l | j) / ln layers"),
}
_COLOURS = "viridis"
_MOST_TICKS = 12
_NORM = "activation_norm layer="
_BY_LAYER = {
    _NORM: "mean norm of the activations",
    "adjacent_cosine layers=": "cosine with the next layer, centred",
    "adjacent_cosine raw, layers=": "cosine with the next layer, as they are",
}
_ABOUT = (
    "P(layer | latent) from sums of activations; columns are the latents that are active, sorted by their mean layer. "
    "Of more than 128 a column is the mean of neighbours."
)


def heat_maps(rows: Rows) -> Drawing | None:
    """Draw P(layer | latent) of each SAE over a text."""
    drawn, few = _mapped(rows, MAPS)
    if not few:
        return None
    sheet = _maps("layers", few, drawn, MAPS)
    return sheet.done("Layers of latents", f"{_ABOUT}{_on(few)}", sampled=told(few, drawn, "SAEs"))


def prompt_maps(rows: Rows) -> Drawing | None:
    """Draw the same of each SAE over one prompt."""
    drawn, few = _mapped(rows, PROMPT)
    if not few:
        return None
    sheet = _maps("layers-prompt", few, drawn, PROMPT)
    prompts = dict.fromkeys("".join(row.score_details[PROMPT].get("tokens", ())) for row in few)
    said = f"{_ABOUT} On the prompt “{'”, “'.join(prompts)}”."
    return sheet.done("Layers of latents on a prompt", said, sampled=told(few, drawn, "SAEs"))


def means(rows: Rows) -> Drawing | None:
    """Draw the histogram of the mean layer E[L | j] of each SAE's latents, 16 bins for each layer."""
    drawn, few = _mapped(rows, MAPS)
    if not few:
        return None
    sheet, differs = Sheet("layers-mean", panels=len(few), wide=True), differing(drawn)
    for panel, row in enumerate(few):
        details, axes = row.score_details[MAPS], sheet.panels[panel]
        bars = axes.stairs(details["counts"], details["edges"], fill=True, color=pens([0])[0].colour)
        sheet.mark(bars, "bars", jobs=(row.job_id,), hint=f"job {row.job_id}: {sum(details['counts'])} latents")
        sheet.title(_named(row, differs), panel=panel)
        at_layers(axes, "x", details["heat_map"]["layers"], "mean layer E[L | j]")
        linear(axes, "y", "latents", lambda value: whole(round(value)))
    said = f"A latent of one layer alone is at a whole number.{_on(few)}"
    return sheet.done("Mean layers of latents", said, sampled=told(few, drawn, "SAEs"))


def by_size(rows: Rows) -> Drawing | None:
    """Draw how far latents are spread over layers against n, a line per k and place."""
    drawn = _scored(rows)
    if len({row.n_latents for row in drawn}) < 2:
        return None
    differs = differing(drawn)

    def axis(sheet: Sheet, panel: int) -> None:
        at_sizes(sheet.panels[panel], [row.n_latents or 0 for row in drawn])

    groups = grouped(drawn, lambda row: series_of(row, differs, f"k = {row.k}"))
    return _spread("layers-n", "n", groups, lambda row: float(row.n_latents or 0), axis)


def by_sparsity(rows: Rows) -> Drawing | None:
    """Draw the same against k, a line per n and place."""
    drawn = _scored(rows)
    if len({row.k for row in drawn}) < 2:
        return None
    differs = differing(drawn)

    def axis(sheet: Sheet, panel: int) -> None:
        at_sizes(sheet.panels[panel], [row.k for row in drawn], label="k")

    groups = grouped(drawn, lambda row: series_of(row, differs, f"n = {tick(row.n_latents or 0)}"))
    return _spread("layers-k", "k", groups, lambda row: float(row.k), axis)


def activations(rows: Rows) -> Drawing | None:
    """Draw norms of the activations by layer, and cosines of neighbours: of one SAE for each place, they are alike."""
    known: dict[str, JobMeasurement] = {}
    drawn = [row for row in rows if any(key.startswith(start) for key in row.scores for start in _BY_LAYER)]
    differs = tuple(name for name in differing(drawn) if name != "activation")
    for row in sorted(drawn, key=lambda row: row.job_id):
        known.setdefault(place(row, differs), row)
    if not known:
        return None
    sheet, colours = Sheet("layers-activations", panels=len(_BY_LAYER), wide=True), pens(sorted(known, key=in_order))
    layers = sorted({layer for row in known.values() for layer, _, _ in _by_layer(row, _NORM)})
    for panel, (start, label) in enumerate(_BY_LAYER.items()):
        for series, pen in colours.items():
            _profile(sheet, known[series], start, pen, panel=panel)
        at_layers(sheet.panels[panel], "x", layers, "layer")
        linear(sheet.panels[panel], "y", label, digits)
    sheet.legend([(name, pen) for name, pen in colours.items() if name])
    said = "Cosines of x − μ, μ the mean of each layer, of the same token at a layer and at the next; and of x itself."
    return sheet.done("Activations by layer", f"{said} Bars: 90% intervals over contexts.{_on(list(known.values()))}")


def _spread(
    name: str, against: str, groups: Mapping[str, list[JobMeasurement]], x: Callable[[JobMeasurement], float],
    axis: Callable[[Sheet, int], None],
) -> Drawing:  # fmt: skip
    rows = [row for members in groups.values() for row in members]
    return score_panels(
        name, f"Spread of latents over layers against {against}", groups, x, axis, kinds=SCORES,
        caption=f"Bars: 90% intervals over contexts. Lines: means over seeds.{_on(rows)}",
    )  # fmt: skip


def _maps(name: str, few: Rows, drawn: Rows, metric: str) -> Sheet:
    sheet, differs = Sheet(name, panels=len(few), wide=True), differing(drawn)
    image = None
    for panel, row in enumerate(few):
        axes, heat_map = sheet.panels[panel], row.score_details[metric]["heat_map"]
        layers, n = heat_map["layers"], heat_map["latents"]
        # Drawn as one small picture, a pixel for each value: thousands of cells would be as many parts of the page.
        image = axes.imshow(
            heat_map["values"], aspect="auto", interpolation="none", vmin=0.0, vmax=1.0, cmap=_COLOURS,
            extent=(0, n, len(layers) - 0.5, -0.5),
        )  # fmt: skip
        sheet.mark(image, "map", jobs=(row.job_id,), hint=f"job {row.job_id}: {n} latents")
        axes.grid(visible=False)
        every = -(-len(layers) // _MOST_TICKS)
        axes.set_yticks([*range(0, len(layers), every)], [str(layer) for layer in layers[::every]])
        axes.set_ylabel("layer")
        linear(axes, "x", "latents by mean layer", lambda value: whole(round(value)))
        sheet.title(_named(row, differs), panel=panel)
    if image is not None:
        sheet.figure.colorbar(image, ax=sheet.panels, label="P(layer | latent)", fraction=0.03, pad=0.01)
    return sheet


def _profile(sheet: Sheet, row: JobMeasurement, start: str, pen: Pen, *, panel: int) -> None:
    at = _by_layer(row, start)
    for x, layers, score in at:
        hint = (
            f"layer {layers.replace('-', ' and ')}: {digits(score.value)} [{digits(score.low)}, {digits(score.high)}]"
        )
        sheet.panels[panel].plot([x, x], [score.low, score.high], color=pen.colour, linewidth=1.0, zorder=3)
        sheet.point((x, score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel)
    places, values = [x for x, _, _ in at], [score.value for _, _, score in at]
    sheet.panels[panel].plot(places, values, color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)


def _by_layer(row: JobMeasurement, start: str) -> list[tuple[int, str, Interval]]:
    """Return the scores whose names begin so, with their layer, and the layers as they are named: 3, or 3-4."""
    found = {key.removeprefix(start): score for key, score in row.scores.items() if key.startswith(start)}
    return sorted((int(layers.partition("-")[0]), layers, score) for layers, score in found.items())


def _mapped(rows: Rows, metric: str) -> tuple[list[JobMeasurement], list[JobMeasurement]]:
    """Return the SAEs that have a heat map, and those that are drawn: the first seed of each kind, the largest ones."""
    known = [row for row in rows if (row.score_details.get(metric) or {}).get("heat_map", {}).get("latents")]
    differs = differing(known)
    kinds: dict[Any, JobMeasurement] = {}
    for row in sorted(known, key=lambda row: row.job_id):
        kinds.setdefault((place(row, differs), row.n_latents, row.k), row)
    largest = sorted(kinds.values(), key=lambda row: -(row.n_latents or 0))[:MOST_MAPS]
    return known, sorted(largest, key=lambda row: (in_order(place(row, differs)), row.n_latents or 0, row.k))


def _scored(rows: Rows) -> list[JobMeasurement]:
    return [row for row in rows if row.n_latents and any(name in row.scores for name in SCORES)]


def _named(row: JobMeasurement, differs: Sequence[str]) -> str:
    return series_of(row, differs, f"n = {tick(row.n_latents or 0)}, k = {row.k}")


def _on(rows: Rows) -> str:
    """Say as a sentence on which text some SAEs were measured."""
    found = [row.score_details[MAPS] for row in rows if MAPS in row.score_details]
    texts = dict.fromkeys(
        f"{whole(details['tokens'])} tokens of {details.get('measured_on') or 'its text'}" for details in found
    )
    return f" On {'; '.join(texts)}." if texts else ""
