"""What is known of a text's size before anybody reads it."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.validation import parse
from orchestrator.estimates.text_size import TextSize, estimate_text


def estimated(tmp_path: Path, source: str, **data: Any) -> TextSize | None:
    place = str(tmp_path / source) if not source.startswith("python:") else source
    training = {"heldout_tokens": 1000, "max_tokens": 100_000}
    return estimate_text(parse({"data": {"source": place, **data}, "training": training}))


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.txt").write_text("a" * 7000)
    (tmp_path / "some" / "b.txt").write_text("b" * 7000)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')


@pytest.mark.parametrize("source", ["some", "some/*.txt"])
def test_text_files_by_their_size(tmp_path: Path, source: str) -> None:
    size = estimated(tmp_path, source)
    assert size == TextSize(14_000 * 2 // 7 - 1000, "about")
    assert size.passes(9000) == 3


def test_a_limit_is_a_bound(tmp_path: Path) -> None:
    assert estimated(tmp_path, "python:stdlib", max_tokens=5000) == TextSize(4000, "at most")
    assert estimated(tmp_path, "some", max_tokens=3000) == TextSize(2000, "at most")
    assert estimated(tmp_path, "some", max_tokens=9000) == TextSize(3000, "about"), "the files are smaller"


@pytest.mark.parametrize(
    "source", ["rows.jsonl", "python:stdlib", "nowhere", "nowhere/*.txt", "**/*.txt", "some/a.txt.gz"]
)
def test_of_others_nothing_is_said(tmp_path: Path, source: str) -> None:
    assert estimated(tmp_path, source) is None


def test_a_text_that_is_all_held_out(tmp_path: Path) -> None:
    assert estimated(tmp_path, "some", max_tokens=1000) is None


def test_a_distribution_has_no_text() -> None:
    assert estimate_text(parse({"subject": {"model": "synthetic:gaussian?d_model=64"}})) is None
