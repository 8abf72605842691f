"""Ranges include both ends, keep whole numbers whole, and round what lies between."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.sweep.ranges import Number, is_range, spread

settings.register_profile("orch", deadline=None, database=None)
settings.load_profile("orch")


@pytest.mark.parametrize(
    ("kind", "arguments", "values"),
    [
        ("range", [1, 7, 2], [1, 3, 5, 7]),
        ("range", [1, 8, 2], [1, 3, 5, 7]),
        ("range", [7, 1, -3], [7, 4, 1]),
        ("range", [3, 3, 1], [3]),
        ("range", [0.1, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("range", [0, 1, 0.25], [0, 0.25, 0.5, 0.75, 1.0]),
        ("range", [1_000_001, 1_000_003, 1], [1_000_001, 1_000_002, 1_000_003]),
        ("lin", [1, 5, 5], [1, 2, 3, 4, 5]),
        ("lin", [0, 1, 3], [0, 0.5, 1]),
        ("lin", [1.0, 2.0, 4], [1.0, 1.33333, 1.66667, 2.0]),
        ("lin", [5, 1, 2], [5, 1]),
        ("lin", [5, 9, 1], [5]),
        ("log", [1e-4, 1e-3, 3], [1e-4, 0.000316228, 1e-3]),
        ("log", [1, 1000, 4], [1, 10, 100, 1000]),
        ("log", [1000, 16000, 3.0], [1000, 4000, 16000]),
        ("log", [1e6, 1e5, 2], [1e6, 1e5]),
        ("log", [1e-300, 1e300, 3], [1e-300, 1.0, 1e300]),
        ("pow2", [8, 10], [256, 512, 1024]),
        ("pow2", [2, 0], [4, 2, 1]),
        ("pow2", [-2, 0], [0.25, 0.5, 1]),
        ("pow2", [20, 20], [1_048_576]),
    ],
)
def test_values(kind: str, arguments: list[Number], values: list[Number]) -> None:
    found = spread(kind, arguments, location="f")
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("range", [1, 7], "takes 3 numbers"),
        ("range", [1, 7, 0], "never reaches"),
        ("range", [1, 7, -1], "never reaches"),
        ("range", [0, 1, 1e-9], "from 1 to 10000"),
        ("lin", [0, 1, 0], "from 1 to 10000"),
        ("lin", [0, 1, 2.5], "makes 2.5 values"),
        ("lin", [0, 1, 10**9], "from 1 to 10000"),
        ("lin", [1, 1, 3], "two different ends"),
        ("log", [0, 1, 3], "above 0"),
        ("log", [1, -1, 3], "above 0"),
        ("pow2", [1.5, 3], "whole exponents"),
        ("pow2", [0, 63], "whole exponents"),
        ("pow2", [], "takes 2 numbers"),
        ("lin", [0, math.inf, 3], "finite numbers"),
        ("lin", [math.nan, 1, 3], "finite numbers"),
        ("lin", [0, 10**400, 3], "finite numbers"),
        ("lin", [True, 2, 3], "finite numbers"),
        ("lin", ["0", 2, 3], "finite numbers"),
        ("lin", [None, 2, 3], "finite numbers"),
        ("lin", [[0], 2, 3], "finite numbers"),
    ],
)
def test_what_is_refused(kind: str, arguments: list[object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        spread(kind, arguments, location="f.yaml:3:4")
    assert caught.value.message.startswith(f"f.yaml:3:4: {kind}: [")
    assert caught.value.hint.startswith(f"Write {kind}: [first")


_reals = st.floats(1e-9, 1e9)


@given(st.sampled_from(["lin", "log"]), _reals, _reals, st.integers(2, 50))
def test_ends_are_as_written_and_order_is_kept(kind: str, start: float, stop: float, count: int) -> None:
    if start == stop:
        return
    found = spread(kind, [start, stop, count], location="f")
    assert (found[0], found[-1], len(found)) == (start, stop, count)
    inner = found[1:-1]
    assert inner == sorted(inner, reverse=stop < start)
    assert inner == [float(f"{value:.6g}") for value in inner]


@given(st.integers(-1000, 1000), st.integers(1, 50), st.integers(1, 100))
def test_range_is_pythons_with_its_end(start: int, step: int, count: int) -> None:
    stop = start + step * count
    assert spread("range", [start, stop, step], location="f") == list(range(start, stop + 1, step))
    assert spread("range", [stop, start, -step], location="f") == list(range(stop, start - 1, -step))


def test_is_range() -> None:
    assert is_range(["log"])
    assert not is_range(["log", "lin"])
    assert not is_range(["loga"])
    assert not is_range([])
