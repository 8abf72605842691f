"""A report of more jobs than a page can show: a sample, which says so, and all of them in the file beside it."""

import csv
import io
import re
from collections import Counter

import pytest

from orchestrator.report import render, rows_csv
from orchestrator.report.page import jobs_listed
from orchestrator.scaling.plots.all_plots import draw, draw_all
from orchestrator.scaling.plots.canvas import Drawing
from orchestrator.scaling.plots.sampling import MOST_SHOWN, sampled
from orchestrator.scaling.types import JobMeasurement
from tests import planted_laws as planted
from tests.unit.orchestrator.report.test_page import Page, contents

SIZES, KS, SEEDS = (64, 128, 256, 512), (4, 8, 16), 30


@pytest.fixture(scope="module")
def rows() -> list[JobMeasurement]:
    places = ((n, k) for n in SIZES for k in KS for _ in range(SEEDS))
    return [planted.job(number, n, k) for number, (n, k) in enumerate(places, start=1)]


@pytest.fixture(scope="module")
def drawings(rows: list[JobMeasurement]) -> dict[str, Drawing]:
    return {one.name: one for one in draw_all(rows, planted.fits(rows))}


def test_figures_draw_a_sample_and_say_so(rows: list[JobMeasurement], drawings: dict[str, Drawing]) -> None:
    assert drawings["curves"].sampled == f"{MOST_SHOWN} of 360 curves shown"
    assert "Thick: the median of all jobs" in drawings["curves"].caption
    assert len(drawings["curves"].jobs) == MOST_SHOWN
    assert drawings["dead"].sampled == f"{MOST_SHOWN} of 360 jobs shown"
    assert all(len(one.jobs) <= 2 * MOST_SHOWN for one in drawings.values())
    few = draw("curves", rows[:10], [])
    assert few is not None
    assert (few.sampled, len(few.jobs)) == ("", 10)


def test_a_median_is_that_of_all_jobs(rows: list[JobMeasurement], drawings: dict[str, Drawing]) -> None:
    medians = [line for axes in drawings["curves"].figure.axes for line in axes.lines if line.get_linewidth() == 2.6]
    assert len(medians) == len(SIZES) * len(KS)


def test_the_sample_prefers_no_size_and_no_k(rows: list[JobMeasurement]) -> None:
    few = sampled(rows, lambda row: row.job_id)
    assert len(few) == MOST_SHOWN
    assert few == sampled(rows, lambda row: row.job_id)
    assert few == sorted(few, key=lambda row: row.job_id)
    tally = Counter((row.n_latents, row.k) for row in few)
    assert len(tally) == len(SIZES) * len(KS)
    assert max(tally.values()) < 2.5 * min(tally.values())


def test_the_page_says_how_many_it_shows_and_where_the_rest_is(
    rows: list[JobMeasurement], drawings: dict[str, Drawing]
) -> None:
    found = contents(rows)
    text = render(found, list(drawings.values()), rows_file="planted.csv")
    page = Page(text)
    listed = jobs_listed(found, list(drawings.values()))
    assert MOST_SHOWN <= len(listed) < len(rows)
    assert f"{MOST_SHOWN} of 360 curves shown; all rows in planted.csv." in " ".join(page.text.split()).replace(
        " .", "."
    )
    assert f"{len(listed)} of 360 jobs shown; all rows in planted.csv." in " ".join(page.text.split()).replace(
        " .", "."
    )
    assert '<a href="planted.csv">' in text
    ids = set(page.values("id"))
    links = [link for link in page.values("href") + page.values("xlink:href") if link.startswith("#")]
    assert {link for link in links if link.removeprefix("#") not in ids} == set()
    assert len(re.findall(r'<tr id="job-\d+">', text)) == len(listed)


def test_the_file_beside_it_has_every_job(rows: list[JobMeasurement]) -> None:
    records = list(csv.DictReader(io.StringIO(rows_csv(contents(rows)))))
    assert [int(record["job_id"]) for record in records] == [row.job_id for row in rows]
    assert [float(record["fvu"]) for record in records] == [row.fvu for row in rows]
    assert {record["training.batch_tokens"] for record in records} == {"256", "257"}, "what configs differ in is there"
    tokens = [float(record["tokens_to_convergence(0.01)"] or "nan") for record in records]
    assert tokens == pytest.approx([row.tokens_to_convergence[0.01] or float("nan") for row in rows], nan_ok=True)
