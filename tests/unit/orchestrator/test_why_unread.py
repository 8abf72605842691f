"""Why a file could not be read: one that is not there is said not to be there, with its path."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from orchestrator.bounded_file import read_text, why_unread


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("it was read")


def test_what_is_missing_and_what_is_not_a_file(tmp_path: Path) -> None:
    missing, inside = tmp_path / "a b.json", tmp_path / "file" / "config.json"
    (tmp_path / "file").write_text("{")
    for path in (missing, inside):
        assert why_unread(error_of(partial(read_text, path, what="a config"))) == f"there is no file {path}"
    assert why_unread(error_of(lambda: read_text(tmp_path, what="a config"))) == f"{tmp_path}: is a directory"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: json.loads("{"), "Expecting property name"),
        (lambda: json.loads("{}")["sha256"], "it lacks 'sha256'"),
        (lambda: b"\xff".decode(), "'utf-8' codec can't decode"),
        (lambda: int("a\nb"), "invalid literal for int"),
    ],
)
def test_what_is_there_and_is_not_as_it_should_be(call: Callable[[], object], said: str) -> None:
    assert why_unread(error_of(call)).startswith(said)
    assert "\n" not in why_unread(error_of(call))
