"""One HTML page that needs nothing else: no network, no font, no file beside it; a script only sorts the jobs."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from urllib.parse import quote

from orchestrator.report.baseline_sections import baseline_findings, baseline_sections
from orchestrator.report.cross_sections import cross_findings, cross_sections
from orchestrator.report.findings_text import findings
from orchestrator.report.fit_sections import fit_sections
from orchestrator.report.html import Html, element
from orchestrator.report.job_table import job_grid
from orchestrator.report.layer_table import layer_tables
from orchestrator.report.page_data import Contents
from orchestrator.report.position_sections import position_findings, position_sections
from orchestrator.report.provenance import moment, provenance
from orchestrator.report.score_sections import rate_sections, score_sections
from orchestrator.scaling.plots.canvas import Drawing
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.plots.svg import JOINS, css, svg
from orchestrator.scaling.types import JobMeasurement

_SORT = """for (const head of document.querySelectorAll("table.jobs th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0];
  const sign = head.dataset.sign = -(head.dataset.sign || -1);
  const read = row => row.cells[head.cellIndex].querySelector("data")?.value ?? row.cells[head.cellIndex].textContent;
  const order = (a, b) => a - b || (isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) || a.localeCompare(b) : 0);
  body.append(...[...body.rows].sort((a, b) => sign * order(read(a), read(b))));
};"""


_LINK = re.compile(r'<a (?:xlink:)?href="#job-(\d+)">(.*?)</a>', re.DOTALL)
"""To a job, from a text or from a point of a figure."""

_JOBS = "Every point of a figure and every number of a fit leads to one of these rows. Exact values: point at a number."


def render(contents: Contents, drawings: Sequence[Drawing], *, rows_file: str = "") -> str:
    """Return the page as text; `rows_file` is the file beside it that has every job, where the page has a sample."""
    listed = jobs_listed(contents, drawings)
    title, found = f"{contents.title}: what it came to", _found(contents)
    body = element(
        "main",
        _header(contents),
        element("h2", "Findings"),
        element("ul", *(element("li", said) for said in found), class_="findings"),
        _intervals(contents),
        *_part("Figures", _figures(drawings, rows_file)),
        *_part("Scores", [*rate_sections(contents), *score_sections(contents, listed), *baseline_sections(contents),
                          *position_sections(contents)]),
        *_part("Fits", fit_sections(contents)),
        *_part("Layers", [*cross_sections(contents), *layer_tables(listed)]),
        *_part("Jobs", [element("p", *_about_jobs(contents, listed, rows_file), class_="small"),
                        job_grid(contents, listed)]),
        *_part("Where it comes from", provenance(contents)),
    )  # fmt: skip
    page = f"<!doctype html>\n{element('html', _head(title), element('body', body, _script()), lang='en')}\n"
    numbers = {row.job_id for row in listed}  # not those of a sample's others, nor of a fit's jobs that were removed
    return _LINK.sub(lambda found: found[0] if int(found[1]) in numbers else found[2], page)


def _found(contents: Contents) -> list[Html]:
    of_scores = [*baseline_findings(contents), *position_findings(contents)]
    return [*findings(contents), *of_scores, *cross_findings(contents)]


def _intervals(contents: Contents) -> Html:
    """Say what the intervals in the findings are."""
    of = ["of fits by the bootstrap"] if contents.fits else []
    of += ["of SAEs at several layers by Student's t over the seeds"] if cross_findings(contents) else []
    return element("p", f"In brackets: 90% intervals, {', '.join(of)}.", class_="small") if of else Html("")


def jobs_listed(contents: Contents, drawings: Sequence[Drawing]) -> list[JobMeasurement]:
    """Return the jobs that the page lists: all, or of very many a sample and what is drawn."""
    few = {row.job_id for row in sampled(contents.rows, lambda row: row.job_id)}
    few |= {job for drawing in drawings for job in drawing.jobs}
    return [row for row in contents.rows if row.job_id in few]


def _about_jobs(contents: Contents, listed: Sequence[JobMeasurement], rows_file: str) -> list[Html | str]:
    said = told(listed, contents.rows, "jobs")
    return [_JOBS, f" {said}", *_all_rows(rows_file)] if said else [_JOBS]


def _all_rows(rows_file: str) -> list[Html | str]:
    return ["; all rows in ", element("a", rows_file, href=quote(rows_file)), "."] if rows_file else ["."]


def _head(title: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return element(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Html(_style())),
    )


def _style() -> str:
    own = resources.files("orchestrator.report").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {css(dark=True)} }} }}"
    return f":root {{ {css()} }}\n{dark}\n{JOINS}\n{own}"


def _header(contents: Contents) -> Html:
    subjects = ", ".join(contents.subjects)
    said = f"{subjects or 'no subject yet'} · {moment(contents.at)} · orch {contents.version}"
    return element("header", element("h1", contents.title), element("p", said, class_="small"))


def _part(title: str, blocks: Sequence[Html]) -> list[Html]:
    return [element("h2", title), *blocks] if blocks else []


def _figures(drawings: Sequence[Drawing], rows_file: str) -> list[Html]:
    found = [_figure(drawing, rows_file) for drawing in drawings]
    return [element("div", *found, class_="figures")] if found else []


def _figure(drawing: Drawing, rows_file: str) -> Html:
    few = [f" {drawing.sampled}", *_all_rows(rows_file)] if drawing.sampled else []
    caption = element("figcaption", element("strong", f"{drawing.title}. "), drawing.caption, *few)
    wide = "wide" if drawing.figure.get_figwidth() > 8 else None
    return element("figure", Html(svg(drawing, inline=True)), caption, id=f"figure-{drawing.name}", class_=wide)


def _script() -> Html:
    return element("script", Html(_SORT))
