"""The report: whole, well-formed, without a word to the network, escaped; every link leads somewhere."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from orchestrator.report import Contents, Missing, Origin, SweepText, render
from orchestrator.report.collect import fit_everywhere
from orchestrator.report.html import Html, element, grid, number
from orchestrator.scaling.plots.all_plots import draw_all
from orchestrator.scaling.types import JobMeasurement
from tests import planted_laws as planted

VOID = {"meta", "br", "img", "link", "hr"}
CONFIG = {
    "subject": {"model": "https://me:secret@host/model"},
    "sae": {"n_latents": 64, "k": 4},
    "stop": {"epsilon": 0.01},
}


class Page(HTMLParser):
    """What a page holds; it fails where an element is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def values(self, name: str) -> list[str]:
        return [value for attributes in self.attributes if (value := attributes.get(name)) is not None]


def contents(rows: list[JobMeasurement], **values: Any) -> Contents:
    origin = Origin(CONFIG, "a1b2c3d4e5f6", 1, "c" * 40, {"torch": "2.13.0"}, "d" * 64, (3.1e13, 1e13))
    start: dict[str, Any] = {
        "sweeps": (SweepText("planted", {"project": "laws"}, "version: 1\nname: planted", 1.8e9),),
        "rows": tuple(rows), "origins": {row.job_id: replace_config(origin, row) for row in rows},
        "fits": planted.stored(planted.fits(rows)), "database": "sqlite:///here/orch.db",
        "at": 1.8e9, "version": "0.1.0",
    }  # fmt: skip
    return Contents(**start | values)


def replace_config(origin: Origin, row: JobMeasurement) -> Origin:
    return origin._replace(config={**CONFIG, "training": {"seed": row.seed, "batch_tokens": 256 + row.job_id % 2}})


def page_of(found: Contents) -> str:
    return render(found, draw_all(found.rows, found.laws))


@pytest.fixture(scope="module")
def text() -> str:
    rows = planted.grid()
    rows[-1] = planted.censored(rows[-1], 600_000.0)
    return page_of(
        contents(rows, missing={"lr": Missing("lr*(N) needs two rates", "orch enqueue FILE optimizer.lr=0.1")})
    )


def test_it_is_well_formed_and_ids_are_unique(text: str) -> None:
    page = Page(text)
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_every_link_leads_to_a_place_on_the_page(text: str) -> None:
    page = Page(text)
    ids = set(page.values("id"))
    links = page.values("href") + page.values("xlink:href")
    assert len(links) > 100
    assert {link for link in links if link.removeprefix("#") not in ids} == set()
    assert {f"job-{number}" for number in range(1, 16)} <= ids
    assert re.findall(r'clip-path="url\(#([^)]+)', text)
    assert set(re.findall(r"url\(#([^)]+)", text)) <= ids


def test_a_job_of_a_fit_that_was_removed_since_is_linked_from_nowhere() -> None:
    rows = planted.grid(ks=(4,))
    found = contents(rows)
    page = Page(page_of(replace(found, rows=found.rows[1:])))
    links = page.values("href") + page.values("xlink:href")
    assert f"#job-{rows[1].job_id}" in links
    assert {link for link in links if link.removeprefix("#") not in page.values("id")} == set()


def test_it_asks_the_network_for_nothing(text: str) -> None:
    addresses = re.findall(r"https?://[^\s\"'<)]+", text)
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "https://me:***@host/model"}
    page = Page(text)
    assert not page.values("src")
    assert not {"link", "iframe", "object", "img", "base"} & set(page.tags)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_a_count_to_convergence_has_its_interval() -> None:
    first, second = planted.grid()[:2]
    first = replace(first, tokens_to_convergence={0.01: 81_920.0}, tokens_interval={0.01: (70_000.0, 99_500.0)})
    words = Page(page_of(contents([first, planted.censored(second, 600_000.0)]))).words
    assert "81.9k (70.0k to 99.5k)" in words
    assert ">600k" in words, "a censored one has none"


def test_the_numbers_are_there_with_their_jobs(text: str) -> None:
    row = planted.grid()[0]
    page = Page(text)
    assert f"{row.fvu:.4f}" in page.words
    assert f"{row.fvu:.17g}" in page.values("value"), "the exact value is behind the rounded one"
    assert "a1b2c3d4" in page.words
    assert "a1b2c3d4e5f6" in page.values("title")
    assert "L(N) at k = 4: " in page.text
    assert "[−0." in page.text
    assert "90% interval" in page.text
    assert "ΔAICc" in page.words
    assert "Not fitted: lr*(N)." in page.text
    assert "orch enqueue FILE optimizer.lr=0.1" in page.text


def test_provenance(text: str) -> None:
    page = Page(text)
    for said in ("c" * 40, "d" * 64, "torch 2.13.0", "sqlite:///here/orch.db", "version: 1\nname: planted", "laws"):
        assert said in page.text
    assert "training.batch_tokens" in page.words, "what differs has a column"
    assert "stop.epsilon: 0.01" in page.text
    assert "secret" not in text


def test_what_users_write_stays_text() -> None:
    evil = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    rows = planted.grid(ks=(4,), sweep=evil, subject=evil, reason=None)
    rows.append(planted.job(77, outcome=None, state="failed", reason=evil, fvu=None, curve=()))
    sweep = SweepText(evil, {evil: evil}, f"name: {evil}", 1.8e9)
    found = contents(rows, sweeps=(sweep,), missing={"lr": Missing(evil, evil)})
    text = page_of(found)
    page = Page(text)
    assert page.open == []
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not any(name.startswith("on") for attributes in page.attributes for name in attributes)
    assert "alert(1)" in page.text


def test_a_sweep_in_which_nothing_has_ended() -> None:
    rows = [planted.job(1, state="queued", outcome=None, fvu=None, curve=(), dead_share=None, l_inf=None)]
    page = Page(page_of(contents(rows)))
    assert "1 job: 1 queued. No job has ended yet" in page.text
    assert "svg" not in page.tags
    assert "job-1" in page.values("id")


def test_a_sweep_without_jobs_losses_that_are_no_numbers_and_one_job() -> None:
    assert "0 jobs: none." in Page(page_of(contents([]))).text
    rows = [planted.job(1, fvu=math.nan, outcome="diverged", l_inf=None, curve=planted.job(1).curve[:3])]
    broken = Page(page_of(contents(rows)))
    assert "1 job: 1 diverged." in broken.text
    assert "The last loss is no number of 1 job: " in broken.text
    assert "nan" not in broken.text
    assert "The lowest fvu" in Page(page_of(contents([planted.job(1)]))).text


def test_several_subjects_get_a_column() -> None:
    rows = [
        *planted.grid(ks=(4,)),
        *(replace(row, job_id=row.job_id + 50, subject="other") for row in planted.grid(ks=(4,))),
    ]
    page = Page(page_of(contents(rows, fits=())))
    assert "The jobs are of 2 subjects: shipped:stdlib-gpt2, other." in page.text
    assert page.words.count("other") == 5


def test_several_hook_points_are_told_apart_everywhere() -> None:
    rows = [
        replace(row, job_id=row.job_id + 50 * at, hook=f"resid_post of block {layer}")
        for at, layer in enumerate((1, 3))
        for row in planted.grid(ks=(4,))
    ]
    page = Page(page_of(contents(rows, fits=planted.stored(fit_everywhere("ln", rows)[0]))))
    assert "hook point" in page.text
    for layer in (1, 3):
        assert f"L(N) at k = 4 of resid_post of block {layer}: " in page.text
        assert page.text.count(f"resid_post of block {layer}") >= 5 + 3, "its jobs, its fit, its panels"


def test_a_layer_with_too_few_jobs_is_noted_with_the_fit_of_the_other() -> None:
    rows = [*planted.grid(ks=(4,)), planted.job(99, 64, 4, hook="resid_post of block 1")]
    [found], missing = fit_everywhere("ln", rows)
    assert missing is not None
    assert found.notes[-1].startswith("Not fitted at resid_post of block 1: L(N) (k=4) needs converged jobs")


def test_a_law_that_is_not_fitted_is_named_once() -> None:
    missing = {"lnk": Missing("L(N,K) needs converged jobs", ""), "ln": Missing("these jobs mix texts", "")}
    page = Page(page_of(replace(contents([planted.job(1)]), missing=missing)))
    said = "".join(page.words)
    assert "L(N,K) needs converged jobs." in said
    assert "L(N,K): L(N,K)" not in said
    assert "L(N): these jobs mix texts." in said


def test_a_fit_that_newer_jobs_do_not_belong_to_says_so() -> None:
    rows = planted.grid(ks=(4,))
    found = contents(rows)
    assert "others have ended since" not in page_of(found)
    assert "others have ended since" in page_of(replace(found, stale=frozenset({found.fits[0].id})))


def test_markup_escapes_by_construction() -> None:
    assert element("p", "a < b", Html("<b>"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b></p>'
    assert number("1.2k", 1234.5) == '<data value="1234.5" title="1234.5">1.2k</data>'
    assert number("–", None) == "–"
    with pytest.raises(ValueError, match="longer"):
        grid([], [(None, ["too many"])])
