"""SAEs that were measured at several layers: what holds of them, the paper's table, and the cross matrices."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.config.evaluation.layer_variants import MATRIX_METRICS
from orchestrator.formatting import NONE, digits, interval, named, whole
from orchestrator.report.html import Head, Html, element, grid, job_links, join, number, score_cell
from orchestrator.report.page_data import Contents
from orchestrator.scaling.across_layers import SaeGroup, grouped, layers_told, told_apart
from orchestrator.scaling.layer_claims import Claim, Compared, beside_home, best_at_home, falling, flatter

_PAPER = {"fvu": "FVU", "mse": "MSE", "l1": "L1", "delta_ce": "ΔCE", "kl": "KL"}
"""The columns of the paper's table of SAEs."""
_MOST_VALUES = 8
"""Of more, the lowest and the highest are told."""
_SURE = (
    "In brackets: 90% intervals, by Student's t over the seeds; of a single seed by bootstrap over contexts. What is "
    "claimed of SAEs is judged seed by seed: it holds where the whole interval says so, of a single seed where its "
    "value does."
)


class _Wording(NamedTuple):
    """How a kind of claim is told."""

    head: str
    number: str
    """What the numbers are."""
    words: tuple[str, str, str] = ("holds at", "not at", "not told by the seeds at")


_FLATTER = _Wording(
    "SAEs of several layers vary less from layer to layer than each SAE of one layer",
    "coefficient of variation ÷ that of the SAE of one layer, below 1 where it holds",
    ("holds against", "not against", "not told by the seeds against"),
)
_AT_HOME = _Wording(
    "Each SAE of one layer is the best of these at its own layer",
    "its score ÷ the lowest of the others there, below 1 where it holds",
)
_BESIDE = _Wording(
    "SAEs of several layers beside that of each layer alone, at that layer",
    "their score ÷ its",
    ("lower at", "higher at", "not told apart by the seeds at"),
)
_SIZE, _SPARSITY = (
    _Wording(
        f"What SAEs of several layers cost the model falls with {axis} at each layer",
        f"exponent of a power law of {axis}, below 0 where it holds",
    )
    for axis in "nk"
)


def cross_findings(contents: Contents) -> list[Html]:
    """Return what is found of SAEs of several layers: of each claim what holds, and what does not."""
    groups = grouped(contents.rows)
    judged = [
        (_FLATTER, flatter(groups)), (_AT_HOME, best_at_home(groups)), (_BESIDE, beside_home(groups)),
        (_SIZE, falling(groups, "n_latents")), (_SPARSITY, falling(groups, "k")),
    ]  # fmt: skip
    return [_finding(contents, wording, claims) for wording, claims in judged if claims]


def cross_sections(contents: Contents) -> list[Html]:
    """Return the table of SAEs of several layers, and the matrices with their intervals."""
    groups = grouped(contents.rows)
    if not groups:
        return []
    multi = [group for group in groups if group.is_multi_layer]
    table = [element("h3", "SAEs of several layers"), element("p", _MEANS, class_="small"), _paper_table(multi)]
    said = f"Measured on {_text(contents)}. {_SURE} At a layer, point at a number for its interval."
    return [
        *(table if multi else []),
        element("h3", "Each SAE at every layer"), element("p", said, class_="small"), _matrix_table(groups),
    ]  # fmt: skip


_MEANS = "Means over the layers that each is trained on; MSE and L1 of vectors as the SAE reads them."


def _finding(contents: Contents, wording: _Wording, claims: Sequence[Claim]) -> Html:
    parts = [part for claim in claims for part in claim.parts]
    n_holding = sum(part.holds is True for part in parts)
    verdict = "" if wording is _BESIDE else f"holds in {n_holding} of {named(len(parts), 'comparison')}"
    head = f" {'; '.join(filter(None, (verdict, wording.number)))}; on {_text(contents)}."
    groups = [claim.groups[0] for claim in claims]
    items = [element("li", _of(claim, groups, wording), _told(claim, wording.words)) for claim in claims]
    return join([element("strong", f"{wording.head}:"), head, element("ul", *items)])


def _of(claim: Claim, groups: Sequence[SaeGroup], wording: _Wording) -> str:
    """Say of what a claim is: its metric, and what its SAEs have in common."""
    row = claim.groups[0].first
    where = [part for at, part in enumerate(claim.groups[0].ground) if len({one.ground[at] for one in groups}) > 1]
    sizes = [f"n = {row.n_latents}"] if wording is not _SIZE else []
    sizes += [f"k = {row.k}"] if wording is not _SPARSITY else []
    seeds = named(len({row.seed for group in claim.groups for row in group.rows}), "seed")
    return f"{_PAPER[claim.metric]} ({', '.join((*where, *sizes, seeds))}): "


def _told(claim: Claim, words: tuple[str, str, str]) -> str:
    kinds = [(words[0], [part for part in claim.parts if part.holds])]
    kinds += [(words[1], claim.failing), (words[2], claim.open)]
    return "; ".join(f"{word} {_listed(parts)}" for word, parts in kinds if parts) + "."


def _listed(parts: Sequence[Compared]) -> str:
    layers = layers_told(sorted(layer for part in parts for layer in part.layers))
    values = [part.value for part in parts]
    if len(values) > _MOST_VALUES:
        return f"{layers} ({digits(min(values).value)} to {digits(max(values).value)})"
    return f"{layers} ({', '.join(map(interval, values))})"


def _text(contents: Contents) -> str:
    families = ("reconstruction", "downstream")
    texts = dict.fromkeys(text for family, text in contents.scored_on.items() if family in families)
    return "; ".join(texts) or "the held-out text"


def _paper_table(multi: Sequence[SaeGroup]) -> Html:
    heads = [
        Head("SAE", right=False), Head("model", right=False), Head("n"), Head("n / d", help="expansion"), Head("k"),
        Head("seeds"), *(Head(title) for title in _PAPER.values()), Head("jobs", right=False),
    ]  # fmt: skip
    rows = []
    for group, name in zip(multi, told_apart(multi), strict=True):
        row, scores = group.first, [score_cell(group.of(metric)) for metric in _PAPER]
        expansion = NONE if not row.d_model or not row.n_latents else digits(row.n_latents / row.d_model)
        sizes = [number(whole(row.n_latents), row.n_latents), expansion, number(str(row.k), row.k)]
        rows.append((None, [name, row.subject, *sizes, str(len(group.rows)), *scores, _jobs(group)]))
    return grid(heads, rows)


def _matrix_table(groups: Sequence[SaeGroup]) -> Html:
    layers = sorted({layer for group in groups for layer in group.layers})
    heads = [
        Head("metric", right=False), Head("SAE", right=False), Head("mean over layers"),
        Head("CV", help="coefficient of variation over the layers"), *(Head(f"layer {layer}") for layer in layers),
        Head("jobs", right=False),
    ]  # fmt: skip
    names, rows = told_apart(groups), []
    for metric in MATRIX_METRICS:
        for group, name in zip(groups, names, strict=True):
            over = [score_cell(group.mean(metric)), score_cell(group.variation(metric))]
            cells = [score_cell(group.at(metric, layer), is_short=True) for layer in layers]
            rows.append((None, [_PAPER[metric], name, *over, *cells, _jobs(group)]))
    return grid(heads, rows, class_="jobs")


def _jobs(group: SaeGroup) -> Html:
    return job_links([row.job_id for row in group.rows])
