"""YAML as this project reads it: 1.2's numbers, locations, and nothing that runs or never ends."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.sweep.yaml_source import parse_text, read_text

settings.register_profile("orch", deadline=None, database=None)
settings.load_profile("orch")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("200e6", 200e6),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("+1.", 1.0),
        ("1_000.5", 1000.5),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("16", 16),
        ("-3", -3),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'16'", "16"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("0x", "0x"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("a:", {"a": None}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_text(text, "f.yaml").plain()
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    assert str(parse_text(".nan", "f").value) == "nan"


def test_locations_are_of_values_and_keys() -> None:
    root = parse_text("a:\n  b:  [1,\n    2]\n", "f.yaml")
    inner = root.value["a"].value["b"]
    assert (inner.key_location, inner.location) == ("f.yaml:2:3", "f.yaml:2:7")
    assert [item.location for item in inner.value] == ["f.yaml:2:8", "f.yaml:3:5"]
    assert parse_text("[1]", "override", lines=False).value[0].location == "override"


_TEN = ", ".join(["*{0}"] * 10)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{_TEN.format(before)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "f.yaml:2:1: 'a' is written twice"),
        ("b: {a: 1, 'a': 2}", "f.yaml:1:11: 'a' is written twice"),
        ("a: [1", "f.yaml:1:6: while parsing a flow sequence"),
        ("a: 'x", "f.yaml:1:6: while scanning a quoted scalar"),
        ("a:\n\tb: 1", "f.yaml:2:1: "),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: expected a single document"),
        ("a: *b", "f.yaml:1:4: found undefined alias"),
        ("? [1]\n: 2", "f.yaml:1:3: a key must be text"),
        ("a: &a\n  b: *a", "f.yaml:1:4: an alias makes this endless"),
        (BOMB, "an alias makes this endless"),
        ("[" * 900, "f.yaml: is nested too deeply"),
        ("!!python/object/apply:os.system ['true']", "f.yaml:1:1: the tag"),
        ("!mine 3", "f.yaml:1:1: the tag"),
        ("!!int abc", "f.yaml:1:1: 'abc' is no int"),
        ("!!bool 3", "f.yaml:1:1: '3' is no bool"),
        ("!!binary aGk=", "is no binary"),
        ("9" * 5000, "is no int"),
        ("0x" + "f" * 5000, "is no int"),
        ("!!map 3", "is no map|the tag"),
        ('"a\\0b"', "f.yaml:1:1: this text holds a character"),
        ('"\\ud800": 1', "f.yaml:1:1: this text holds a character"),
        ("a\0b", "f.yaml: is not text"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")) as caught:
        parse_text(text, "f.yaml")
    assert caught.value.hint


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert parse_text(text, "f.yaml").location.startswith("f.yaml")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a b.yaml"
    file.write_bytes("\ufeffä: 1\r\n".encode())
    assert parse_text(read_text(file), "f").plain() == {"ä": 1}


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing.yaml", "no such file"), (".", "is a folder"), ("binary", "is not text"), ("a\0b", "null")],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=said) as caught:
        read_text(tmp_path / name)
    assert caught.value.hint
