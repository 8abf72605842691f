"""The text format of Prometheus, read back by a parser that forgives nothing."""

import math
import re

import pytest

from orchestrator.cli.commands.metrics import Family, exposition

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|NaN|[+-]Inf")
Samples = dict[tuple[str, str], float]


def parse(text: str) -> Samples:
    """Return the samples by name and unescaped label value; assert whatever the format asks."""
    assert text.endswith("\n")
    found: Samples = {}
    helped: set[str] = set()
    typed: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, said = line.removeprefix("# HELP ").split(" ", 1)
            assert re.fullmatch(NAME, name)
            assert name not in helped, "a metric's lines stand together, once"
            assert said
            assert re.fullmatch(r"(?:[^\\]|\\[\\n])*", said)
            helped.add(name)
        elif line.startswith("# TYPE "):
            of, kind = line.removeprefix("# TYPE ").split(" ")
            assert (of, kind in {"gauge", "counter"}, of in typed) == (name, True, False)
            assert kind == "gauge" or of.endswith("_total")
            typed[of] = kind
        else:
            matched = SAMPLE.fullmatch(line)
            assert matched, line
            assert matched[1] == name, "under its own help"
            assert name in typed
            assert NUMBER.fullmatch(matched[3]), line
            value = (matched[2] or "").partition("=")[2][1:-1]
            key = name, re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)
            assert key not in found, "twice"
            found[key] = float(matched[3].replace("Inf", "inf"))
            assert typed[name] == "gauge" or found[key] >= 0
    assert helped == set(typed)
    return found


def written(family: Family) -> str:
    return "\n".join(exposition(family)) + "\n"


@pytest.mark.parametrize("value", ["cpu", 'a "b"', "back\\slash", "two\nlines", "\\n", "größe {x=1}, y", ""])
def test_labels_come_back_as_they_were(value: str) -> None:
    family = Family("orch_x", "gauge", "What\nit is: \\ and all.", {value: 1.5, "other": 2.0}, "device")
    assert parse(written(family)) == {("orch_x", value): 1.5, ("orch_x", "other"): 2.0}


@pytest.mark.parametrize("value", [0, True, 12345678901234567890, 0.1, 1e-9, 1e300, -2.5, math.inf, -math.inf])
def test_numbers_come_back_as_they_were(value: float) -> None:
    assert parse(written(Family("orch_x", "gauge", "x", {"": value}))) == {("orch_x", ""): float(value)}


def test_what_is_no_number_says_so() -> None:
    (found,) = parse(written(Family("orch_x", "gauge", "x", {"": math.nan}))).values()
    assert math.isnan(found)


@pytest.mark.parametrize(
    "wrong",
    [
        'orch_x{device="a"b"} 1',
        "orch_x 1 # comment",
        "orch_x one",
        "orch_y 1",
        'orch_x{1="a"} 1',
        "orch_x 1\norch_x 1",
    ],
)
def test_the_parser_forgives_nothing(wrong: str) -> None:
    text = f"# HELP orch_x x\n# TYPE orch_x gauge\n{wrong}\n"
    with pytest.raises(AssertionError):
        parse(text)
