"""Every fault F1 to F36 has a test that is named after it, or a reason why there is none."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = range(1, 37)
DOES_NOT_APPLY: dict[int, str] = {}
"""Rows without a test, and why."""


@cache
def _tested() -> frozenset[int]:
    """Return the numbers in the names of test functions, `test_f07_...`."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (named := re.match(r"test_f(\d\d)_", node.name)):
                found.add(int(named[1]))
    return frozenset(found)


def test_every_fault_has_its_test() -> None:
    missing = [f"F{number}" for number in ROWS if number not in _tested() | DOES_NOT_APPLY.keys()]
    assert not missing, "no test is named test_fNN_ after these, and no reason is given"


def test_what_does_not_apply_has_no_test_and_a_reason() -> None:
    assert DOES_NOT_APPLY.keys() <= set(ROWS) - _tested()
    assert all(DOES_NOT_APPLY.values())


def test_no_test_is_named_after_a_fault_that_is_none() -> None:
    assert _tested() <= set(ROWS)
