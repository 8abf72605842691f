"""Where labelled texts come from: Python's own source, .csv and .jsonl files, data sets."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.bounded_file import why_unread
from orchestrator.config.evaluation.probe_files import (
    MOST_OF_A_FIELD,
    ProbeColumns,
    columns_of,
    is_file,
    is_shipped,
    probe_files,
    shipped_tasks,
)
from orchestrator.config.evaluation.probes import ProbesOptions, ProbeTask
from orchestrator.errors import ConfigError
from worker.checked_folder import sha256_of_file
from worker.data.hub_datasets import find_dataset
from worker.evaluation.probes.examples import LabelledText, Stretch, whole_text
from worker.evaluation.probes.python_source import python_tasks
from worker.subject import hub

Row = Mapping[str, Any]
_SPLITS = {"train": False, "test": True}


class ProbeSource(NamedTuple):
    """Labelled texts that can be read any number of times."""

    name: str
    identity: dict[str, Any]
    """What decides the texts and labels, in values that JSON keeps."""
    read: Callable[[], Iterable[LabelledText]]


def open_sources(task: ProbeTask, options: ProbesOptions, seed: int, tick: Callable[[], None]) -> Iterator[ProbeSource]:
    """Yield the labelled texts that a source names: of a folder each file by itself.

    Raises:
        ConfigError: there is no such task, file, data set, split or column.
        SubjectError: it cannot be read.
        MachineError: the hub is out of reach.
    """
    if is_shipped(task.source):
        names = shipped_tasks(task.source)
        drawn = cache(lambda: python_tasks(names, options, seed, tick))
        for name in names:
            version = {"kind": "python", "python": sys.version, "task": name, "tasks": names}
            yield ProbeSource(name, version, partial(lambda name: drawn()[name], name))
    elif is_file(task.source):
        for name, path in probe_files(task.source).items():
            identity: dict[str, Any] = {"sha256": sha256_of_file(path), "kind": path.suffix.lower()}
            identity |= {"text": task.text_column, "label": task.label_column}
            yield ProbeSource(name, identity, partial(read_file, path, task))
    else:
        yield _dataset(task)


def read_file(path: Path, task: ProbeTask) -> Iterator[LabelledText]:
    """Yield the labelled texts of a .csv or .jsonl file.

    Raises:
        ConfigError: it has no such columns, or cannot be read as what its name says.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                csv.field_size_limit(MOST_OF_A_FIELD)
                reader = csv.DictReader(file, strict=True)
                columns = columns_of(reader.fieldnames or (), task, str(path))
                yield from _labelled(reader, columns, str(path))
            else:
                rows = _json_rows(file, str(path))
                first = next(rows, None)
                columns = columns_of(first or (), task, str(path))
                yield from _labelled((row for part in ([first], rows) for row in part if row), columns, str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"probes.tasks: {path} cannot be read: {why_unread(error)}", hint="Give a file in UTF-8."
        ) from error


def read_dataset(splits: Mapping[bool, Any], task: ProbeTask) -> Iterator[LabelledText]:
    """Yield the labelled texts of splits of a data set: for testing (True) and to fit on (False).

    A row may hold a list of words and a list of their labels.
    """
    for is_test, rows in splits.items():
        columns = columns_of(rows.column_names, task, f"data set {task.source}")
        assert columns.label is not None
        names = _class_names(rows.features[columns.label])
        for row in rows:
            text, label = row[columns.text], row[columns.label]
            if isinstance(text, list):
                words = [(str(word), names(one), " ") for word, one in zip(text, label, strict=True)]
                yield _joined(words, is_test)
            elif text is not None and label is not None:
                yield whole_text(str(text), names(label), is_test)


def _labelled(rows: Iterable[Row], columns: ProbeColumns, where: str) -> Iterator[LabelledText]:
    numbered = ((f"{where}, row {number}", row) for number, row in enumerate(rows, 1))
    if columns.text is None:
        keyed = groupby(numbered, key=lambda one: (one[1].get("split"), one[1]["sentence"]))
        for _, group in keyed:
            words = list(group)
            is_test = _is_test(words[0][1], columns, words[0][0])
            yield _joined([_word(row, columns, place) for place, row in words], is_test)
        return
    for place, row in numbered:
        text, is_test = _string(row, columns.text, place), _is_test(row, columns, place)
        if columns.label is None:
            yield LabelledText(text, tuple(_span(one, text, place) for one in row.get("spans") or ()), is_test)
        else:
            yield whole_text(text, _string(row, columns.label, place), is_test)


def _word(row: Row, columns: ProbeColumns, place: str) -> tuple[str, str, str]:
    assert columns.label is not None
    after = "" if str(row.get("space_after", 1)) == "0" else " "
    return _string(row, "token", place), _string(row, columns.label, place), after


def _joined(words: Iterable[tuple[str, str, str]], is_test: bool | None) -> LabelledText:
    """Return a text of words, each with its label and what comes after it."""
    text, stretches = "", []
    for word, label, after in words:
        stretches.append(Stretch(len(text), len(text) + len(word), label))
        text += word + after
    return LabelledText(text.rstrip(" "), tuple(stretches), is_test)


def _span(value: Any, text: str, place: str) -> Stretch:
    is_right = isinstance(value, list) and len(value) == 3 and all(isinstance(end, int) for end in value[:2])
    if not is_right or not 0 <= value[0] < value[1] <= len(text):
        raise ConfigError(
            f"probes.tasks: {place}: {value!r} is no part of its text",
            hint="Write spans as [first character, the one after the last, label].",
        )
    return Stretch(value[0], value[1], str(value[2]))


def _is_test(row: Row, columns: ProbeColumns, place: str) -> bool | None:
    if not columns.has_split:
        return None
    split = str(row.get("split"))
    if split not in _SPLITS:
        raise ConfigError(f"probes.tasks: {place}: split is {split!r}", hint="A split is train or test.")
    return _SPLITS[split]


def _string(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if value is None or isinstance(value, list | dict):
        raise ConfigError(
            f"probes.tasks: {place} has nothing that can be read under {column!r}", hint="Correct the row."
        )
    return str(value)


def _json_rows(file: Iterable[str], where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"probes.tasks: {where}, line {number}: not JSON ({error})", hint="Correct it.") from None
        if not isinstance(row, dict):
            raise ConfigError(f"probes.tasks: {where}, line {number}: not a JSON object", hint="Correct the line.")
        yield row


def _class_names(feature: Any) -> Callable[[Any], str]:
    """Return what gives a label's name: classes of a data set are numbers, and their names stand beside it."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return (lambda label: str(names[label])) if names else str


def _dataset(task: ProbeTask) -> ProbeSource:
    instead = "Give .csv or .jsonl files, python:stdlib"
    builder = find_dataset(task.source, task.name, task.revision, key="probes.tasks", instead=instead).builder
    identity = {"dataset": builder.hash, **task.model_dump(mode="json")}

    def read() -> Iterator[LabelledText]:
        try:
            builder.download_and_prepare()
            splits = {False: builder.as_dataset(task.train_split), True: builder.as_dataset(task.test_split)}
        except (OSError, ValueError, KeyError) as error:
            raise hub.refused(f"data set {task.source!r}", error, "Check the splits and the network.") from None
        yield from read_dataset(splits, task)

    return ProbeSource(task.source.rpartition("/")[2], identity, read)
