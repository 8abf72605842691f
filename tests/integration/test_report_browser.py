"""The report in a real browser: light, dark and on paper; nothing sticks out, nothing is asked of the network."""

import re
from pathlib import Path

import pytest

from tests import planted_laws as planted
from tests.browser import Browser
from tests.unit.orchestrator.report.test_page import contents, page_of

MEASURE = """<script>
const boxes = [...document.querySelectorAll("svg")].map(svg =>
  [...svg.querySelectorAll("[id*=tick] text")].map(text => text.getBoundingClientRect()));
const cross = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
let crossing = 0;
for (const box of boxes) box.forEach((a, at) => box.slice(at + 1).forEach(b => { crossing += cross(a, b) }));
const outside = [...document.querySelectorAll("svg text")].filter(text => {
  const a = text.getBoundingClientRect(), b = text.closest("svg").getBoundingClientRect();
  return a.left < b.left - 2 || a.right > b.right + 2 || a.bottom > b.bottom + 2 || a.top < b.top - 2; }).length;
const small = Math.min(...[...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height));
const root = document.documentElement;
root.dataset.measured = `${root.scrollWidth - root.clientWidth} ${crossing} ${outside} ${Math.round(small)}`;
</script></body>"""
SORT = """<script>
const head = [...document.querySelectorAll("table.jobs th")].find(th => th.textContent === "fvu");
const order = () => [...document.querySelectorAll("table.jobs tbody tr")].map(row => row.id).join(" ");
head.click(); const up = order(); head.click();
document.documentElement.dataset.sorted = `${up}|${order()}`;
</script></body>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [*planted.grid(), *(planted.job(40 + at, 256, 8, lr=0.004 * 2**at, seed=1) for at in range(4))]
    rows[4] = planted.censored(rows[4], 600_000.0)
    rows.append(planted.job(60, 1024, 8, outcome="diverged", fvu=float("nan"), curve=()))
    place = tmp_path_factory.mktemp("page") / "report.html"
    place.write_text(page_of(contents(rows)), encoding="utf-8")
    return place


def with_script(page: Path, script: str) -> Path:
    """Return a copy of a page that measures itself; the page's own policy forbids that."""
    copy = page.with_name("measured.html")
    copy.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", script))
    return copy


def brightness(shot: Path) -> tuple[float, int]:
    """Return the median brightness of a picture, 0 to 255, and how many colours it has."""
    from PIL import Image

    with Image.open(shot) as picture:
        plain = picture.convert("RGB")
        colours = plain.getcolors(plain.width * plain.height) or []
        tones = sorted(tone for tone in plain.convert("L").resize((64, 64)).tobytes())
        return float(tones[len(tones) // 2]), len(colours)


@pytest.mark.parametrize(("dark", "low", "high"), [(False, 240, 255), (True, 10, 60)])
def test_it_is_light_or_dark_as_the_reader_wants(browser: Browser, page: Path, dark: bool, low: int, high: int) -> None:
    tone, colours = brightness(browser.look(page, dark=dark, height=2400))
    assert low <= tone <= high
    assert colours > 200, "the picture is not blank"


@pytest.mark.parametrize("width", [1280, 820])
def test_nothing_sticks_out_or_overlaps(browser: Browser, page: Path, width: int) -> None:
    found = re.search(
        r'data-measured="(-?\d+) (\d+) (\d+) (\d+)"', browser.dom(with_script(page, MEASURE), width=width)
    )
    assert found
    overflow, crossing, outside, smallest = map(int, found.groups())
    assert overflow <= 0
    assert crossing == 0, "numbers beside an axis overlap"
    assert outside == 0, "a text leaves its figure"
    if width == 1280:
        assert smallest >= 11, "a text is too small to read"


def test_it_asks_the_network_for_nothing(browser: Browser, page: Path) -> None:
    assert browser.requests(page) == []
    nosy = page.with_name("nosy.html")
    nosy.write_text('<img src="http://127.0.0.1:9/pixel.png">')
    assert browser.requests(nosy) == ["http://127.0.0.1:9/pixel.png"], "the test would see a request"


def test_it_is_printed_on_a_few_pages(browser: Browser, page: Path) -> None:
    paper = browser.paper(page)
    assert paper.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type /Page\b", paper)) <= 25


def test_a_click_on_a_head_sorts_by_exact_value(browser: Browser, page: Path) -> None:
    found = re.search(r'data-sorted="([^|"]*)\|([^"]*)"', browser.dom(with_script(page, SORT)))
    assert found
    up, down = found[1].split(), found[2].split()
    rows = {f"job-{row.job_id}": row.fvu for row in planted.grid()}
    known = [name for name in up if name in rows]
    assert known == sorted(rows, key=lambda name: rows[name] or 0)
    assert [name for name in down if name in rows] == known[::-1]


def test_the_script_of_the_page_is_the_one_its_policy_allows(browser: Browser, page: Path) -> None:
    clicked = page.read_text().replace("</body>", '<p id="x">0</p></body>')
    assert "script-src 'sha256-" in clicked
    copy = page.with_name("policy.html")
    copy.write_text(page.read_text().replace("</body>", "<script>document.title = 'taken'</script></body>"))
    assert "<title>taken" not in browser.dom(copy)
