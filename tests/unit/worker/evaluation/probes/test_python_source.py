"""What a token of Python is inside of, on a file that was written for it."""

from itertools import pairwise

import pytest

from orchestrator.config.evaluation.probes import ProbesOptions
from worker.evaluation.probes.python_source import label_file, python_tasks

FILE = '''\
"""É docstring."""
import os  # a comment

CAPTION = f"ünï {os.name} done"


@wraps(f)
@property
def named(x):
    return x + "ß" if x else (
        None
    )


class Thing(Parent):
    """What it is."""

    @cached
    def inner(self): return self.x

AFTER = 1
'''


def marked(task: str, text: str = FILE) -> str:
    """Return the characters with the label 1, stretches apart by |."""
    is_one = label_file(text, 100).labels[task]
    shown = "".join(char if one else "\0" for char, one in zip(text, is_one, strict=True))
    return "|".join(part for part in shown.split("\0") if part)


def test_labels_by_hand() -> None:
    assert marked("in_string") == '"""É docstring."""|f"ünï {os.name} done"|"ß"|"""What it is."""'
    assert marked("in_comment") == "# a comment"
    assert marked("in_decorator") == "@wraps(f)|@property|@cached"
    assert marked("after_return") == 'x + "ß" if x else (\n        None\n    )|self.x'
    body = '    """What it is."""\n\n    @cached\n    def inner(self): return self.x'
    assert marked("in_class_body") == body


def test_columns_of_ast_are_bytes() -> None:
    assert marked("after_return", "def f():\n    'éé'; return 'ß' + ü\n") == "'ß' + ü"
    assert marked("in_class_body", "class A: é = 1; b = 2\nc = 3\n") == "é = 1; b = 2"


def test_passages_begin_with_a_statement() -> None:
    passages = label_file(FILE, 60).passages
    starts = [FILE[passage].splitlines()[0] for passage in passages]
    assert starts == ['"""É docstring."""', "@wraps(f)", "class Thing(Parent):", "AFTER = 1"]
    assert all(passage.stop <= later.start for passage, later in pairwise(passages))


def test_what_is_not_python_is_refused() -> None:
    with pytest.raises(SyntaxError):
        label_file("class:\n", 10)


def test_tasks_are_balanced_and_the_same_every_time() -> None:
    options = ProbesOptions(train_examples=60, test_examples=20)
    seen: list[int] = []
    found = python_tasks(("in_comment", "after_return"), options, 0, lambda: seen.append(1))
    assert found == python_tasks(("in_comment", "after_return"), options, 0, lambda: None)
    assert found != python_tasks(("in_comment", "after_return"), options, 1, lambda: None)
    assert seen
    for rows in found.values():
        kinds = [(row.is_test, row.stretches[0].label) for row in rows]
        assert {kind: kinds.count(kind) for kind in kinds} == {
            (False, "0"): 30, (False, "1"): 30, (True, "0"): 10, (True, "1"): 10,
        }  # fmt: skip
        assert not {row.text for row in rows if row.is_test} & {row.text for row in rows if not row.is_test}
        assert all(not row.text[row.stretches[0].start].isspace() for row in rows)
