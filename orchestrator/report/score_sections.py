"""What evaluations measured, as tables: the main scores of each SAE, and activations at equal L0."""

import math
from collections.abc import Sequence
from functools import partial

from orchestrator.config.evaluation.families import MAIN_SCORES
from orchestrator.formatting import digits, named, whole
from orchestrator.report.html import Head, Html, element, grid, job_links, number, score_cell
from orchestrator.report.page_data import Contents
from orchestrator.scaling.best_rates import Rates, rates_tried
from orchestrator.scaling.equal_l0 import Comparison, compare
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.plots.score_plots import SCORES
from orchestrator.scaling.types import JobMeasurement

_SHOWN = [name for metrics in MAIN_SCORES.values() for name in metrics if name != "fvu"]
"""Scores that have a column; fvu has one of training's."""
_INTERVALS = "In brackets: 90% intervals of each SAE, over contexts, examples or latents; seeds differ besides."


def score_sections(contents: Contents, listed: Sequence[JobMeasurement]) -> list[Html]:
    """Return the table of scores, and one of activations at equal L0 where there are several."""
    scored = [row for row in listed if any(name in row.scores for name in _SHOWN)]
    if not scored:
        return []
    more = " All scores: orch results; of every variant and text: orch results --long."
    return [
        element("p", _measured_on(contents), _INTERVALS, more, class_="small"),
        _score_grid(scored),
        *_equal_l0(contents),
    ]


def _measured_on(contents: Contents) -> str:
    """Say on which text the families were measured: once for all of them, where it is one."""
    families: dict[str, list[str]] = {}
    for family, text in contents.scored_on.items():
        families.setdefault(text, []).append(family)
    told = "; ".join(f"{', '.join(named)} on {text}" if len(families) > 1 else text for text, named in families.items())
    return f"Measured on {told}. " if told else ""


def _score_grid(rows: Sequence[JobMeasurement]) -> Html:
    names, differs = [name for name in _SHOWN if any(name in row.scores for row in rows)], differing(rows)
    heads = [
        Head("job"), *([Head("of", right=False)] if differs else []), Head("n"), Head("k"), Head("L0"), Head("fvu"),
        *(Head(name, help=SCORES[name].label if name in SCORES else "") for name in names),
    ]  # fmt: skip
    cells = [
        [
            job_links([row.job_id]), *([place(row, differs)] if differs else []),
            number(whole(row.n_latents), row.n_latents), number(str(row.k), row.k), number(digits(row.l0), row.l0),
            number(digits(row.fvu, 4), row.fvu), *(score_cell(row.scores.get(name)) for name in names),
        ]
        for row in rows
    ]  # fmt: skip
    return grid(heads, [(None, one) for one in cells], class_="jobs")


def rate_sections(contents: Contents) -> list[Html]:
    """Return the best of several learning rates at each place, where there are several places."""
    found = rates_tried([row for row in contents.rows if row.fvu is not None])
    if len({(one.best.hook, one.best.layers) for one in found}) < 2:
        return []
    differs = differing([one.best for one in found])
    heads = [
        Head("of", right=False), Head("n"), Head("k"), Head("seed"), Head("best rate"), Head("its fvu"),
        Head("fvu of others ÷ its", right=False, help="at their rates"), Head("at an end", right=False),
        Head("job"),
    ]  # fmt: skip
    listed = sampled(found, lambda one: one.best.job_id)
    rows = [(None, _rates(one, differs)) for one in listed]
    said = (
        "Of jobs that differ in the learning rate alone the one of the lowest held-out fvu. How sure that is, the "
        "others say: a single seed does not tell rates apart whose fvu is within a few percent. At an end: no rate "
        f"beyond it was tried, and a better one may lie there. {told(listed, found, 'places, sizes and seeds')}"
    )
    return [element("h3", "Best learning rate by place"), element("p", said, class_="small"), grid(heads, rows)]


def _rates(one: Rates, differs: Sequence[str]) -> list[str]:
    best = one.best
    others = [
        f"{digits((row.fvu or math.nan) / (best.fvu or math.nan))} at {digits(row.lr)}"
        for row in sorted(one.rows[1:], key=lambda row: row.lr or 0.0)
    ]
    return [
        place(best, differs), number(whole(best.n_latents), best.n_latents), str(best.k), str(best.seed),
        number(digits(best.lr), best.lr), number(digits(best.fvu, 4), best.fvu), ", ".join(others),
        "yes" if one.is_at_end else "no", job_links([best.job_id]),
    ]  # fmt: skip


def _equal_l0(contents: Contents) -> list[Html]:
    names = [name for name in SCORES if any(name in row.scores for row in contents.rows)]
    found = [("fvu", one) for one in compare(contents.rows, lambda row: row.fvu)]
    for name in names:
        found += [(name, one) for one in compare(contents.rows, partial(_value, name))]
    if not found:
        return []
    has_place = any(one.place for _, one in found)
    heads = [
        Head("metric", right=False), *([Head("of", right=False)] if has_place else []),
        Head("activation", right=False), Head("n"), Head("L0", help="of TopK"), Head("TopK"),
        Head("÷ TopK", help="geometric mean over seeds, with its 90% interval by Student's t"), Head("seeds"),
        Head("jobs", right=False),
    ]  # fmt: skip
    said = (
        "What each activation comes to at the L0 of TopK, interpolated between its own jobs in ln L0, seed by seed; "
        "above 1 it is higher than TopK. Where its jobs do not reach around that L0, nothing is said."
    )
    rows = [(None, _comparison(name, one, has_place=has_place)) for name, one in found]
    return [element("h3", "Activations at equal L0"), element("p", said, class_="small"), grid(heads, rows)]


def _comparison(name: str, one: Comparison, *, has_place: bool) -> list[str]:
    return [
        name, *([one.place] if has_place else []), one.activation, number(whole(one.n_latents), one.n_latents),
        number(digits(one.l0), one.l0), number(digits(one.baseline, 4), one.baseline), score_cell(one.ratio),
        named(len(one.seeds), "seed"), job_links(one.jobs),
    ]  # fmt: skip


def _value(name: str, row: JobMeasurement) -> float | None:
    score = row.scores.get(name)
    return None if score is None else score.value
