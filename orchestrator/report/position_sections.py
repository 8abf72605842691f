"""Scores by position: a table, and whether the first position behaves as published, with what speaks for the reason."""

import math
from collections import Counter
from collections.abc import Sequence

from orchestrator.formatting import NONE, digits, named
from orchestrator.report.html import Head, Html, element, grid, job_links, join, number, score_cell
from orchestrator.report.page_data import Contents
from orchestrator.scaling.best_rates import best_rates
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.plots.position_plot import largest
from orchestrator.scaling.positions import LARGE_NORM, METRICS, FirstPosition, first_position, profile
from orchestrator.scaling.types import JobMeasurement

_TOLD = {"fvu": "fvu", "delta_ce": "ΔCE", "kl": "KL", "residual_norm": "norm"}
_PUBLISHED = (
    "Gao et al. found, at all but the first and the last layers of GPT-2 small, that position 0 is easier to "
    f"reconstruct than the others, costs more to replace, and has a norm above {LARGE_NORM:.0f} times theirs."
)


def position_findings(contents: Contents) -> list[Html]:
    """Return whether position 0 behaves as published, of every SAE that was measured there; and where not, why."""
    judged = [one for row in best_rates(contents.rows) if (one := first_position(row)) is not None]
    if not judged:
        return []
    as_there = [one for one in judged if one.is_as_published]
    verdict = (
        "behaves as in Gao et al." if len(as_there) == len(judged)
        else "does not behave as in Gao et al." if not as_there
        else f"behaves as in Gao et al. in {len(as_there)} of {named(len(judged), 'SAE')}"
    )  # fmt: skip
    others = [one for one in judged if not one.is_as_published]
    text = contents.scored_on.get("downstream") or "the held-out text"
    head = element("strong", f"Position 0 {verdict.removesuffix('.')}. ")
    said = f"{_measured(judged, text)} {_PUBLISHED} {_why(others)}"
    jobs = ["Otherwise: ", job_links([one.row.job_id for one in others]), "."] if as_there and others else []
    return [join([head, said, *jobs])]


def _measured(judged: Sequence[FirstPosition], text: str) -> str:
    """Say what was measured on a text: for how many SAEs fvu is lower and ΔCE and KL higher, and how large the norm."""
    easy, costly = (Counter(found) for found in ((one.is_easy for one in judged), (one.is_costly for one in judged)))
    return (
        f"Position 0 is compared with the other positions, on {text}, for {named(len(judged), 'SAE')}. Its fvu is "
        f"lower for {easy[True]} and higher for {easy[False]}. Its ΔCE and KL are both higher for {costly[True]}; at "
        f"least one of the two is lower for {costly[False]}. Lower and higher mean that the 90% intervals do not meet. "
        f"Its norm is {_span(judged)} times that of the others."
    )


def _span(judged: Sequence[FirstPosition]) -> str:
    low, high = (digits(end(one.norm_ratio for one in judged)) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _why(others: Sequence[FirstPosition]) -> str:
    """Say why it can be otherwise, by what was measured of the SAEs for which it is."""
    usual = [one for one in others if not one.has_large_norm]
    no_norm = (
        "Where its norm is not that large and it costs no more, a likely reason is that later tokens have no such "
        "vector to attend to. At the first and the last layers of GPT-2 small it costs no more either."
    )
    alone = (
        "Where its norm is not that large and it costs more, its prediction rests on one token, and no context makes "
        "up for an error."
    )
    kept = "Where its norm is large and its loss is not, its reconstruction may keep what later tokens need."
    many = "Where it is no easier to reconstruct, contexts may begin with tokens that share no one direction."
    reasons = {
        no_norm: any(not one.is_costly for one in usual), alone: any(one.is_costly for one in usual),
        kept: any(one.has_large_norm and not one.is_costly for one in others),
        many: any(not one.is_easy for one in others),
    }  # fmt: skip
    return "".join(f"{reason} " for reason, holds in reasons.items() if holds)


def position_sections(contents: Contents) -> list[Html]:
    """Return the table of scores by position, of the SAEs that the figure draws."""
    drawn = largest(contents.rows)
    if not drawn:
        return []
    # The last position of a context predicts nothing: the last bucket of losses ends one earlier.
    bounds = sorted({bounds for row in drawn for metric in METRICS for bounds in profile(row, metric).buckets})
    ends = dict(bounds)
    differs = differing(drawn)
    heads = [
        Head("score", right=False), Head("job"), *([Head("of", right=False)] if differs else []), Head("n"), Head("k"),
        Head("position 0"), Head("rest", help="mean over all positions but 0"), Head("0 ÷ rest"),
        *(Head(str(low) if low == high else f"{low}–{high}") for low, high in ends.items()),
    ]  # fmt: skip
    rows = [
        _line(row, metric, [*ends], place(row, differs) if differs else None) for metric in METRICS for row in drawn
    ]
    said = (
        "Of the largest SAE of each k and place: fvu of raw activations, ΔCE and KL in nats per token, mean norm of "
        "the activations. In brackets: 90% intervals over contexts; at a bucket, point at a number for its interval."
    )
    shown = [(None, line) for line in rows if line is not None]
    return [element("h3", "By position"), element("p", said, class_="small"), grid(heads, shown, class_="jobs")]


def _line(row: JobMeasurement, metric: str, starts: Sequence[int], where: str | None) -> list[Html | str] | None:
    found = profile(row, metric)
    if not (found.first or found.buckets):
        return None
    at = {low: score for (low, _), score in found.buckets.items()}
    return [
        _TOLD[metric], job_links([row.job_id]), *([where] if where is not None else []),
        number(f"{row.n_latents:,}", row.n_latents), str(row.k), score_cell(found.first), score_cell(found.rest),
        NONE if math.isnan(found.ratio) else number(digits(found.ratio), found.ratio),
        *(score_cell(at.get(start), is_short=True) for start in starts),
    ]  # fmt: skip
