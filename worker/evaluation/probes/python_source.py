"""Tasks made of Python's own source: what a token is inside of, as `tokenize` and `ast` say of the whole file."""

import ast
import io
import tokenize
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.evaluation.probes import SHIPPED_TASKS, ProbesOptions
from orchestrator.errors import SubjectError
from worker.data.standard_library import standard_library_files
from worker.evaluation.probes.examples import LabelledText, Stretch, is_in_share
from worker.evaluation.seeds import seed_of

_CHARACTERS_PER_TOKEN = 3
_OF_A_PASSAGE = 4
"""Characters of either label that are drawn of a passage at most, for each task."""
_PART = 4
"""One file in so many is read at most, the first by the hash of their names: what is rare is not looked for further."""
_STRING_STARTS = ("FSTRING_START", "TSTRING_START")
_STRING_ENDS = ("FSTRING_END", "TSTRING_END")
"""Of Python 3.12 and later, that takes such literals apart; here they are one string, as before."""
Labels = dict[str, NDArray[np.bool_]]


class LabelledFile(NamedTuple):
    """A Python file."""

    labels: Labels
    """For each task, which characters have the label 1."""
    passages: list[slice]
    """Stretches: each begins with the line of a statement, and none begins in another."""


def label_file(text: str, passage_length: int) -> LabelledFile:
    """Return what each character of a Python file is inside of, and the file in passages of so many characters.

    Raises:
        SyntaxError, ValueError: it is not Python of this version.
    """
    lines = _Lines(text)
    labels: Labels = {name: np.zeros(len(text), dtype=np.bool_) for name in SHIPPED_TASKS}
    _mark_tokens(text, lines, labels)
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's files
        nodes = list(ast.walk(ast.parse(text)))
    for node in nodes:
        if isinstance(node, ast.Return) and node.value is not None:
            labels["after_return"][lines.span(node.value)] = True
        elif isinstance(node, ast.ClassDef):
            first = node.body[0]
            is_on_line = first.lineno == node.lineno  # class A: pass
            start = lines.span(first).start if is_on_line else lines.at(_first_line(first), 0)
            labels["in_class_body"][start : lines.span(node).stop] = True
        for decorator in getattr(node, "decorator_list", []):
            span = lines.span(decorator)
            labels["in_decorator"][text.rindex("@", 0, span.start) : span.stop] = True
    starts = {lines.at(_first_line(node), 0) for node in nodes if isinstance(node, ast.stmt)}
    return LabelledFile(labels, _passages(starts, passage_length, len(text)))


def python_tasks(
    names: tuple[str, ...], options: ProbesOptions, seed: int, tick: Callable[[], None]
) -> Mapping[str, list[LabelledText]]:
    """Return the texts of tasks of the standard library: as many characters of either label, in each part.

    `tick` is called after every file. Files are read in the order of a hash, until there are enough of each label.

    Raises:
        SubjectError: this Python has no sources.
    """
    pools = {name: _Pool(options) for name in names}
    try:
        files = sorted(standard_library_files(), key=lambda file: seed_of(file[0], 0))
    except FileNotFoundError as error:
        raise SubjectError(
            str(error), hint="Give probes.tasks files or data sets: this Python has no sources."
        ) from None
    for path, text in files[: -(-len(files) // _PART)]:
        tick()
        try:
            file = label_file(text, _CHARACTERS_PER_TOKEN * options.context_length)
        except (SyntaxError, ValueError, tokenize.TokenError, RecursionError):
            continue  # a template or a file of another version
        is_test = is_in_share(path, options.test_share)
        generator = np.random.default_rng(seed_of(path, seed))
        is_ink = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32) > ord(" ")
        for passage in file.passages:
            for name, pool in pools.items():
                pool.add(text[passage], is_ink[passage], file.labels[name][passage], is_test, generator)
        if all(pool.is_full for pool in pools.values()):
            break
    return {name: pool.balanced(np.random.default_rng(seed_of(name, seed))) for name, pool in pools.items()}


def _passages(starts: set[int], length: int, end_of_file: int) -> list[slice]:
    found: list[slice] = []
    for start in sorted(starts):
        if not found or start >= found[-1].stop:
            found.append(slice(start, min(start + length, end_of_file)))
    return found


class _Lines:
    """Where the lines of a text begin. A line ends at a newline alone, as for the compiler."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self.starts = np.concatenate([[0], np.cumsum([len(line) + 1 for line in self._lines])])

    def at(self, line: int, column: int) -> int:
        """Return the number of a character by its line, from 1, and its column in characters."""
        return int(self.starts[line - 1]) + column

    def span(self, node: ast.expr | ast.stmt) -> slice:
        """Return the characters of a node, whose columns are bytes of UTF-8."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return slice(self._of_bytes(node.lineno, node.col_offset), self._of_bytes(node.end_lineno, node.end_col_offset))

    def _of_bytes(self, line: int, column: int) -> int:
        return self.at(line, len(self._lines[line - 1].encode()[:column].decode()))


def _mark_tokens(text: str, lines: _Lines, labels: Labels) -> None:
    open_strings: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = lines.at(*token.start), lines.at(*token.end)
        kind = tokenize.tok_name[token.type]
        if kind in _STRING_STARTS:
            open_strings.append(start)
        elif kind in _STRING_ENDS:
            labels["in_string"][open_strings.pop() : end] = True
        elif kind == "STRING":
            labels["in_string"][start:end] = True
        elif kind == "COMMENT":
            labels["in_comment"][start:end] = True


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


@dataclass
class _Pool:
    """Characters of one task that were drawn, by part and label."""

    options: ProbesOptions
    found: dict[tuple[bool, bool], list[tuple[str, int]]] = field(default_factory=dict)

    def add(
        self,
        text: str,
        is_candidate: NDArray[np.bool_],
        is_one: NDArray[np.bool_],
        is_test: bool,
        generator: np.random.Generator,
    ) -> None:
        """Draw characters of a passage, where there are not yet enough of their kind: so few passages are read."""
        for label in (False, True):
            found = self.found.setdefault((is_test, label), [])
            places = np.flatnonzero(is_candidate & (is_one == label))
            n = min(_OF_A_PASSAGE, len(places), self._wanted(is_test) - len(found))
            if n:
                found.extend((text, int(place)) for place in generator.choice(places, n, replace=False))

    def _wanted(self, is_test: bool) -> int:
        return (self.options.test_examples if is_test else self.options.train_examples) // 2

    @property
    def is_full(self) -> bool:
        """Whether there are enough of each kind."""
        return all(
            len(self.found.get((is_test, label), ())) >= self._wanted(is_test)
            for is_test in (False, True)
            for label in (False, True)
        )

    def balanced(self, generator: np.random.Generator) -> list[LabelledText]:
        """Return as many of either label, in each part."""
        chosen: list[LabelledText] = []
        for is_test in (False, True):
            pools = [self.found.get((is_test, label), []) for label in (False, True)]
            n = min(self._wanted(is_test), *map(len, pools))
            for label, pool in zip("01", pools, strict=True):
                for i in np.sort(generator.permutation(len(pool))[:n]):
                    text, place = pool[i]
                    chosen.append(LabelledText(text, (Stretch(place, place + 1, label),), is_test))
        return chosen
