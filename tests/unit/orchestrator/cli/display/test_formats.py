import math
from dataclasses import dataclass

import click
import pytest

from orchestrator.cli import terminal
from orchestrator.cli.display import formats
from orchestrator.cli.display.records import csv_text, record
from orchestrator.cli.display.tables import Column, cut, table, visible
from orchestrator.curves.point import Point, point_of
from orchestrator.formatting import count, digits, duration


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (0, "0"), (999, "999"), (1000, "1.00k"), (65_536, "65.5k"), (786_432, "786k"),
     (999_600, "1.00M"), (1_048_576, "1.05M"), (7.08e6, "7.08M"), (2.5e9, "2.50G"), (4e12, "4.00T")],
)  # fmt: skip
def test_count(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (2, "2"), (2.0, "2"), (1.9996, "2.00"), (-2.0004, "−2.00"), (0.99996, "1.00"),
     (9.9996, "10.0"), (0.5, "0.500"), (99.96, "100"), (999.7, "1000"), (3.14e13, "3.14×10¹³")],
)  # fmt: skip
def test_digits(value: float | None, text: str) -> None:
    assert digits(value) == text


def test_a_content_id_is_cut_and_no_other_text() -> None:
    assert formats.short_id("0123456789abcdef" * 4) == "0123456789"
    for text in ("0123456789abcdef" * 3, "g" * 64, "stdlib-lens", ""):
        assert formats.short_id(text) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (math.inf, "–"), (0.4, "0s"), (59.6, "1m00s"), (250, "4m10s"), (3599.7, "1h00m"), (90_000, "1d01h")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_small_figures() -> None:
    assert formats.scientific(9.2e12) == "9.2e12"
    assert formats.ratio(0.12345) == "0.1235"
    assert formats.share(0.012) == "1.2%"
    assert formats.moment(0.0) == "1970-01-01T00:00:00.000Z"
    assert formats.moment(None) is None
    assert (formats.plural(1, "worker"), formats.plural(2, "worker")) == ("1 worker", "2 workers")


@pytest.mark.parametrize("part", [-1.0, 0.0, 0.26, 0.5, 0.99, 1.0, 7.0])
def test_a_bar_always_has_its_width(part: float) -> None:
    done, left = formats.bar(part, 12)
    assert len(done + left) == 12
    assert (left == "") == (part >= 0.98)


def test_sparkline() -> None:
    assert formats.sparkline([1.0, 0.1, 0.01], 12) == "█▅▁"
    assert formats.sparkline([0.5], 12) == "▁"
    assert formats.sparkline([], 12) == formats.sparkline([math.nan, 0.0, -1.0], 12) == ""
    long = formats.sparkline([2.0**-i for i in range(100)], 12)
    assert (len(long), long[0], long[-1]) == (12, "█", "▁")


COLUMNS = [
    Column[tuple[int, str]]("ID", lambda row: str(row[0]), right=True),
    Column[tuple[int, str]]("HEAVY", lambda row: terminal.style(row[1], fg="red"), weight=8),
    Column[tuple[int, str]]("LIGHT", lambda row: row[1] * 3, weight=1),
]


def _unstyled(line: str) -> str:
    return click.unstyle(terminal.written(line))


def test_a_cell_holds_no_codes_but_ours() -> None:
    columns = [Column("A", lambda row: row), Column("B", lambda row: terminal.style(row, fg="red"))]
    (_, line) = table(["x\x1b[2J\ny"], columns, width=None)
    assert visible(line) == 2 * len(r"x\x1b[2J\ny") + 2
    assert terminal.written(line) == r"x\x1b[2J\ny  " + "\x1b[31m" + r"x\x1b[2J\ny" + "\x1b[0m"


def test_table_aligns_by_what_is_seen() -> None:
    lines = table([(1, "a"), (100, "bcd")], COLUMNS, width=None)
    assert [_unstyled(line) for line in lines] == [" ID  HEAVY  LIGHT", "  1  a      aaa", "100  bcd    bcdbcdbcd"]


@pytest.mark.parametrize("width", [3, 8, 12, 17, 20, 40])
def test_table_leaves_out_the_lightest_and_never_overflows(width: int) -> None:
    lines = table([(1, "a"), (100, "bcd")], COLUMNS, width=width)
    assert max(map(visible, lines)) <= width
    assert ("LIGHT" in _unstyled(lines[0])) == (width >= 21)


def test_empty_table_is_its_header() -> None:
    assert _unstyled(table([], COLUMNS, width=None)[0]) == "ID  HEAVY  LIGHT"


def test_cut_keeps_colours_whole() -> None:
    assert cut("plain", 10) == "plain"
    assert cut("plain text", 6) == "plain…"
    styled = cut(terminal.style("abcdef", fg="red"), 4)
    assert _unstyled(styled) == "abc…"
    assert terminal.written(styled).endswith("\x1b[0m")


@dataclass(frozen=True)
class Row:
    id: int
    fvu: float
    created_at: float | None
    labels: dict[str, str]


def test_records_are_json_that_every_reader_takes() -> None:
    assert record(Row(1, math.nan, 0.0, {"a": "b"})) == {
        "id": 1, "fvu": None, "created_at": "1970-01-01T00:00:00.000Z", "labels": {"a": "b"},
    }  # fmt: skip
    assert record(point_of(dict.fromkeys(Point._fields[:12], math.inf)))["loss"] is None


def test_csv() -> None:
    text = csv_text([record(Row(1, 0.5, None, {"a": "b", "c": "d"}))])
    assert text == "id,fvu,created_at,labels\n1,0.5,,a=b;c=d"
    assert csv_text([]) == ""
