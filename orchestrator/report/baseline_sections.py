"""SAEs beside what needs no SAE: which are better than channels, random directions, ablations and constants."""

from collections.abc import Sequence

from orchestrator.formatting import digits, interval, named, whole
from orchestrator.report.html import Head, Html, element, grid, job_links, join, number, score_cell
from orchestrator.report.page_data import Contents
from orchestrator.scaling.baselines import BASELINES, CHANNELS, RANDOM, Beside, beside_baselines
from orchestrator.scaling.best_rates import best_rates
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.plots.score_plots import SCORES
from orchestrator.scaling.types import JobMeasurement

_OF_LATENTS = [metric for metric in BASELINES if metric.startswith(("probe", "ablation"))]
_HOW = (
    "Each SAE is held against a baseline on the same draws of the text: better or worse where the whole 90% interval "
    "says so. Channels and random directions are single ones: of probes the best one, of ablations the mean of those "
    "drawn. Of several learning rates the best SAE counts."
)


def baseline_findings(contents: Contents) -> list[Html]:
    """Return whether latents beat channels and random directions on probes and on ablation sparsity."""
    found = [
        one for one in beside_baselines(best_rates(contents.rows))
        if one.metric in _OF_LATENTS and one.baseline.label in (CHANNELS, RANDOM)
    ]  # fmt: skip
    if not found:
        return []
    items = [element("li", f"{_named(one.metric)}, against {one.baseline.label}: {_counted(one)}.") for one in found]
    texts = dict.fromkeys(text for family in ("probes", "ablation") if (text := contents.scored_on.get(family)))
    text = "; ".join(texts) or "the held-out text"
    said = f"by 90% intervals of what one has over the other on the same draws of {text}."
    head = element("strong", "Latents beside residual channels and random directions: ")
    return [join([head, said, element("ul", *items)])]


def _named(metric: str) -> str:
    return SCORES[metric].label.partition(" (nats")[0].partition(", nats")[0]


def _counted(one: Beside) -> str:
    better, worse, open_ = (len(one.judged(said)) for said in (True, False, None))
    return f"better in {better} of {named(len(one.rows), 'SAE')}, worse in {worse}, not told apart in {open_}"


def baseline_sections(contents: Contents) -> list[Html]:
    """Return the table of baselines, and that of each SAE against channels and random directions."""
    rows = best_rates(contents.rows)
    found = beside_baselines(rows)
    if not found:
        return []
    heads = [
        Head("score", right=False), Head("baseline", right=False), Head("baseline's", help="lowest and highest"),
        Head("SAEs'", help="lowest and highest"), Head("better"), Head("worse"), Head("not told"),
        Head("worse or not told", right=False),
    ]  # fmt: skip
    title, said = element("h3", "Beside baselines"), element("p", _HOW, class_="small")
    return [title, said, grid(heads, [(None, _line(one)) for one in found]), *_each(rows)]


def _line(one: Beside) -> list[Html | str]:
    better, worse, open_ = (one.judged(said) for said in (True, False, None))
    counts = [str(len(jobs)) for jobs in (better, worse, open_)]
    spans = [_span(one, one.baseline.key), _span(one, one.metric)]
    return [_named(one.metric), one.baseline.label, *spans, *counts, job_links([*worse, *open_])]


def _span(one: Beside, key: str) -> Html:
    """Return the lowest and the highest of a score, whose intervals show to who points at them; one with its own."""
    low, high = one.span(key)
    if digits(low.value) == digits(high.value):
        return number(interval(low), low.value)
    span = f"{digits(low.value)} to {digits(high.value)}"
    return element("data", span, value=f"{low.value:.17g}", title=f"{interval(low)} to {interval(high)}")


def _each(rows: Sequence[JobMeasurement]) -> list[Html]:
    """Return what each SAE has over channels and random directions."""
    pairs = [
        (metric, one) for metric in _OF_LATENTS for one in BASELINES[metric]
        if one.label in (CHANNELS, RANDOM) and any(one.paired in row.scores for row in rows)
    ]  # fmt: skip
    known = [row for row in rows if any(one.paired in row.scores for _, one in pairs)]
    if not known:
        return []
    listed = sampled(known, lambda row: row.job_id)
    differs = differing(listed)
    heads = [
        Head("job"), *([Head("of", right=False)] if differs else []), Head("n"), Head("k"),
        *(Head(one.paired, help=f"{SCORES[metric].label}: against {one.label}") for metric, one in pairs),
    ]  # fmt: skip
    cells = [
        [
            job_links([row.job_id]), *([place(row, differs)] if differs else []),
            number(whole(row.n_latents), row.n_latents), str(row.k),
            *(score_cell(row.scores.get(one.paired)) for _, one in pairs),
        ]
        for row in listed
    ]  # fmt: skip
    said = "probe_gain: how much lower the loss of the best latent is, in nats; ablation_ratio: latents' ÷ theirs. "
    about = element("p", said, told(listed, known, "SAEs"), class_="small")
    return [about, grid(heads, [(None, one) for one in cells], class_="jobs")]
