"""Each fit with its coefficients, the forms that were tried, its points and the jobs left out."""

import math
from collections.abc import Iterable

from orchestrator.formatting import NONE, digits, named, scientific, share, whole
from orchestrator.report.findings_text import finding
from orchestrator.report.html import Head, Html, element, grid, job_links, join
from orchestrator.report.page_data import Contents
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots.law_plots import spelled
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.types import Excluded, Fit, Residual, Score, StoredFit


def fit_sections(contents: Contents) -> list[Html]:
    """Return a section per fit, and one about the laws that have none."""
    return [*(_section(stored) for stored in contents.fits), *([_not_fitted(contents)] if contents.missing else [])]


def _not_fitted(contents: Contents) -> Html:
    blocks = [
        block
        for law, missing in contents.missing.items()
        for block in (
            element("p", *_headed(LAWS[law].title, missing.why), "."),
            element("pre", missing.hint) if missing.hint else Html(""),
        )
    ]
    return element("section", element("h3", "Laws that are not fitted"), *blocks, id="not-fitted")


def _headed(title: str, text: str) -> list[Html | str]:
    """Return a text that begins with a law's title in bold, once."""
    rest = text.removeprefix(title)
    return [element("strong", title), f": {text}" if rest == text else rest]


def _section(stored: StoredFit) -> Html:
    fit = stored.fit
    group = f", {fit.group.replace('=', ' = ')}" if fit.group else ""
    title = f"{LAWS[fit.law].title}{group}"
    left_out = f"{named(len(fit.excluded), 'job')} left out, and why"
    shown = sampled(fit.residuals, lambda point: point.jobs[0] if point.jobs else 0)
    few = told(shown, fit.residuals, "points")
    return element(
        "section",
        element("h3", title, element("small", f" fit {stored.id}, {', '.join(filter(None, (fit.subject, fit.hook)))}")),
        element("p", finding(stored)),
        element("p", element("code", spelled(fit.equation)), class_="equation"),
        element("div", _coefficients(fit), _scores(fit), class_="side"),
        element("ul", *(element("li", note) for note in fit.notes), class_="notes") if fit.notes else Html(""),
        _facts(fit),
        _folded(
            f"{named(len(fit.residuals), 'point')} it was fitted to{f'; {few}' if few else ''}", _residuals(fit, shown)
        ),
        _folded(left_out, _excluded(fit.excluded)) if fit.excluded else Html(""),
        id=f"fit-{stored.id}",
    )


def _coefficients(fit: Fit) -> Html:
    heads = [Head("coefficient", right=False), Head("value"), Head("90% interval")]
    rows = [
        (None, [spelled(name), digits(value.value, 4), f"{digits(value.low, 4)} to {digits(value.high, 4)}"])
        for name, value in fit.coefficients.items()
    ]
    return grid(heads, rows)


def _scores(fit: Fit) -> Html:
    best = min((score.aicc for score in fit.scores if score.aicc is not None), default=None)
    heads = [
        Head("form", right=False), Head("coefficients"), Head("ΔAICc", help="against the best; lower is better"),
        Head("rms", help="of the log residuals"), Head("holdout", help="error at the largest n, fitted without it"),
    ]  # fmt: skip
    return grid(heads, [(None, _score(score, best, fit.form)) for score in fit.scores])


def _score(score: Score, best: float | None, chosen: str) -> list[str]:
    gap = NONE if score.aicc is None or best is None else digits(score.aicc - best)
    name = element("strong", f"{score.form} ✓") if score.form == chosen else score.form
    rms = NONE if score.rms is None else share(score.rms, 2)
    return [name, str(score.n_coefficients), gap, rms, _missed(score.holdout_error)]


def _missed(error: float | None) -> str:
    return NONE if error is None or not math.isfinite(error) else share(math.expm1(error))


def _facts(fit: Fit) -> Html:
    options = ", ".join(f"{name} {value}" for name, value in fit.options.items() if value is not None)
    said = [f"{named(fit.n_bootstrap, 'bootstrap refit')}"]
    said += [options] if options else []
    said += [f"seeds scatter by {share(math.expm1(fit.seed_sigma), 2)}"] if fit.seed_sigma is not None else []
    held = [" Largest n: job ", job_links(list(dict.fromkeys(fit.holdout_jobs))), "."] if fit.holdout_jobs else []
    return element("p", "; ".join(said) + ".", *held, class_="small")


def _residuals(fit: Fit, shown: Iterable[Residual]) -> Html:
    axis = "C (FLOPs)" if LAWS[fit.law].is_over_compute else "n"
    heads = [
        Head("jobs", right=False), Head(axis), Head("k"), Head("observed"),
        Head("by the law"), Head("off by"), Head("remark", right=False),
    ]  # fmt: skip
    return grid(heads, [(None, _residual(residual, fit)) for residual in shown])


def _residual(residual: Residual, fit: Fit) -> list[str]:
    remark = "; ".join(filter(None, ("censored: the truth is above" if residual.censored else "", residual.flagged)))
    place = scientific(residual.x) if LAWS[fit.law].is_over_compute else whole(residual.x)
    observed = ("> " if residual.censored else "") + digits(residual.observed, 4)
    off = share(math.expm1(residual.log_residual), 2)
    k = NONE if residual.k is None else str(residual.k)
    return [job_links(residual.jobs), place, k, observed, digits(residual.predicted, 4), off, remark]


def _excluded(excluded: Iterable[Excluded]) -> Html:
    by_reason: dict[str, list[int]] = {}
    for one in excluded:
        by_reason.setdefault(one.why, []).append(one.job_id)
    return element("ul", *(element("li", join([why, ": jobs ", job_links(jobs)])) for why, jobs in by_reason.items()))


def _folded(title: str, inner: Html) -> Html:
    return element("details", element("summary", title), inner)
