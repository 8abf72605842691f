"""The table of jobs: every point and number of the page links to one of its rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from orchestrator.formatting import NONE, count, digits, ratio, scientific, share, whole, with_error
from orchestrator.report.html import Head, Html, element, grid, join, number
from orchestrator.report.page_data import Contents
from orchestrator.scaling.plots.job_plots import EPSILON, tokens_to_convergence
from orchestrator.scaling.plots.naming import differing
from orchestrator.scaling.types import JobMeasurement

_Cell = Callable[[JobMeasurement], str]
_PLACES = {"subject": "subject", "hook": "hook point", "data": "text", "activation": "activation"}
"""Heads of the columns, by the field of a job."""


class _Column(NamedTuple):
    head: Head
    cell: _Cell


def job_grid(contents: Contents, listed: Sequence[JobMeasurement]) -> Html:
    """Return the table of some jobs; sweep, subject, hook point, text and activation where there are several."""
    columns = [
        _Column(Head("job"), lambda row: number(str(row.job_id), row.job_id)),
        *_names(contents),
        *_measures(),
        *_origins(contents),
    ]
    rows = [(f"job-{row.job_id}", [column.cell(row) for column in columns]) for row in listed]
    return grid([column.head for column in columns], rows, class_="jobs")


def _names(contents: Contents) -> list[_Column]:
    columns = [_Column(Head("sweep", right=False), lambda row: row.sweep)] if len(contents.sweeps) > 1 else []
    return [
        *columns,
        *(_Column(Head(_PLACES[name], right=False), attrgetter(name)) for name in differing(contents.rows)),
        _Column(Head("n", help="latents"), lambda row: number(whole(row.n_latents), row.n_latents)),
        _Column(Head("k", help="latents kept per token"), lambda row: number(str(row.k), row.k)),
        _Column(
            Head("lr", help="learning rate"),
            lambda row: number(digits(row.lr) + (" auto" if row.lr_is_auto else ""), row.lr),
        ),
        _Column(Head("seed"), lambda row: number(str(row.seed), row.seed)),
    ]


def _measures() -> list[_Column]:
    return [
        _Column(Head("fvu", help="held out, the lower of averaged and raw weights'"), lambda row: _ratio(row.fvu)),
        _Column(Head("L0", help="mean active latents per held-out token"), lambda row: number(digits(row.l0), row.l0)),
        _Column(Head("untrained"), lambda row: _ratio(row.untrained_fvu)),
        _Column(Head("L∞ ± se", help="limit of the curve"), _limit),
        _Column(
            Head("T(1%)", help="tokens to within 1% of the limit, 90% interval; > where training ended before"),
            _convergence,
        ),
        _Column(Head("outcome", right=False), outcome),
        _Column(
            Head("dead", help="latents; – where the dead window had not passed"),
            lambda row: number(share(row.dead_share), row.dead_share),
        ),
        _Column(Head("tokens"), lambda row: number(whole(row.tokens_seen), row.tokens_seen)),
        _Column(Head("passes", help="over the text, so far"), lambda row: number(digits(row.passes), row.passes)),
    ]


def _origins(contents: Contents) -> list[_Column]:
    fits = fits_of_jobs(contents)

    def flops(row: JobMeasurement) -> str:
        spent = contents.origins[row.job_id].flops if row.job_id in contents.origins else None
        return NONE if spent is None else number(scientific(spent[0]), spent[0])

    def run(row: JobMeasurement) -> str:
        run_id = contents.origins[row.job_id].mlflow_run_id if row.job_id in contents.origins else None
        return element("code", run_id[:8], title=run_id) if run_id else NONE

    return [
        _Column(Head("FLOPs", help="dense-equivalent: 12·n·D per token"), flops),
        _Column(
            Head("time", help="training, over all attempts"),
            lambda row: number(_duration(row.wall_seconds), row.wall_seconds),
        ),
        _Column(
            Head("fits", right=False, help="the fits it is a point of"), lambda row: _links(fits.get(row.job_id, []))
        ),
        _Column(Head("MLflow run", right=False), run),
    ]


def fits_of_jobs(contents: Contents) -> Mapping[int, list[tuple[int, str]]]:
    """Return the fits (id and law) each job is a point of."""
    found: dict[int, list[tuple[int, str]]] = {}
    for stored in contents.fits:
        for job in stored.fit.jobs:
            found.setdefault(job, []).append((stored.id, stored.fit.law))
    return found


def _links(fits: Sequence[tuple[int, str]]) -> Html:
    return join([element("a", law, href=f"#fit-{fit_id}") for fit_id, law in fits], " ") if fits else Html(NONE)


def outcome(row: JobMeasurement) -> str:
    """Return how a job ended, or why it has not."""
    words = {"max_tokens": "out of budget", "not_learning": "not learning"}
    ended = words.get(row.outcome, row.outcome) if row.outcome else row.state
    return f"{ended}: {row.reason}" if row.reason and not row.outcome else ended


def _ratio(value: float | None) -> str:
    text = ratio(value)
    return text if text == NONE else number(text, value)


def _limit(row: JobMeasurement) -> str:
    if row.l_inf is None:
        return NONE
    return number(with_error(row.l_inf, row.l_inf_se), row.l_inf)


def _convergence(row: JobMeasurement) -> str:
    tokens, bound = row.tokens_to_convergence.get(EPSILON), row.tokens_lower_bound.get(EPSILON)
    ends = row.tokens_interval.get(EPSILON)
    interval = f" ({count(ends[0])} to {count(ends[1])})" if ends else ""
    return number(tokens_to_convergence(row) + interval, bound if tokens is None else tokens)


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
