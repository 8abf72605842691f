"""Files of labelled texts: which a source names, and what their columns mean. Reads names and first lines alone."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from orchestrator.bounded_file import why_unread
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.probes import SHIPPED_TASKS, ProbeTask
from orchestrator.config.job import STANDARD_LIBRARY
from orchestrator.config.text_files import in_folder, is_local
from orchestrator.errors import ConfigError

SUFFIXES = (".csv", ".jsonl")
_WORD = ("sentence", "token", "token_index", "space_after")
_LAYOUTS = (
    "A file holds the columns text and label, and split (train or test) if it is divided; or one word a row with "
    "sentence, token and label."
)
MOST_OF_A_FIELD = 16_000_000


class ProbeColumns(NamedTuple):
    """What the columns of a file are, by their names there."""

    label: str | None
    """None: `spans` has the labels of parts of each text."""
    text: str | None = None
    """None: of each row a word."""
    has_split: bool = False


def is_shipped(source: str) -> bool:
    """Say whether a source is Python's own code."""
    return source.startswith("python:")


def is_file(source: str) -> bool:
    """Say whether a source names files, and not a data set."""
    return not is_shipped(source) and (is_local(source) or source.lower().endswith(SUFFIXES))


def shipped_tasks(source: str) -> tuple[str, ...]:
    """Return the tasks that a source of Python's own code names.

    Raises:
        ConfigError: there is no such task.
    """
    library, _, name = source.partition("/")
    if library != STANDARD_LIBRARY or (name and name not in SHIPPED_TASKS):
        known = ", ".join(f"{STANDARD_LIBRARY}/{one}" for one in SHIPPED_TASKS)
        raise ConfigError(
            f"probes.tasks: there is no {source!r}", hint=f"There are {known}; {STANDARD_LIBRARY} means all of them."
        )
    return (name,) if name else tuple(SHIPPED_TASKS)


def probe_files(source: str) -> dict[str, Path]:
    """Return the files of a source by the name of their tasks: of a folder those in it, and in folders below.

    Raises:
        ConfigError: there is none.
    """
    place = Path(source).expanduser().absolute()
    if place.is_dir():
        names = [path.relative_to(place) for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES]
        files = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if not files:
            raise ConfigError(f"probes.tasks: no .csv or .jsonl file in the folder {source}", hint=_LAYOUTS)
        return {name.with_suffix("").as_posix(): place / name for name in files}
    if not place.is_file():
        raise ConfigError(
            f"probes.tasks: there is no file or folder {source}", hint="Check the path, or give a data set id."
        )
    if place.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"probes.tasks: {source} is neither .csv nor .jsonl", hint=_LAYOUTS)
    return {place.stem: place}


def columns_of(names: Iterable[str], task: ProbeTask, where: str) -> ProbeColumns:
    """Return what columns mean.

    Raises:
        ConfigError: the text or the label is missing, or the label could be one of several.
    """
    there = list(names)
    is_words = task.text_column not in there and {"sentence", "token"} <= set(there)
    if not is_words and task.text_column not in there:
        raise _lacks(task.text_column, "text_column", there, where)
    has_split = "split" in there
    if not is_words and task.label_column is None and "label" not in there and "spans" in there:
        return ProbeColumns(None, task.text_column, has_split)
    known = {"split", *(_WORD if is_words else (task.text_column,))}
    others = [name for name in there if name not in known]
    label = task.label_column or ("label" if "label" in there or len(others) != 1 else others[0])
    if label not in there:
        raise _lacks(label, "label_column", there, where)
    return ProbeColumns(label, None if is_words else task.text_column, has_split)


def with_checked_tasks(plan: EvaluationPlan, folder: Path | None = None) -> EvaluationPlan:
    """Return a plan with the paths of its probes' tasks absolute, as a worker needs them; each is looked into.

    A relative path is read from `folder`, else from the folder one is in. Of a data set id nothing is known before.

    Raises:
        ConfigError: a source is not there or has no texts and labels: says which, and what it lacks.
    """
    if "probes" not in plan.metrics:
        return plan
    tasks = tuple(_checked(task, folder) for task in plan.probes.tasks)
    if tasks == plan.probes.tasks:
        return plan
    return plan.model_copy(update={"probes": plan.probes.model_copy(update={"tasks": tasks})})


def _checked(task: ProbeTask, folder: Path | None) -> ProbeTask:
    if is_shipped(task.source):
        shipped_tasks(task.source)
        return task
    place = in_folder(task.source, folder)
    if not place.exists() and not is_file(task.source):
        return task
    for path in probe_files(str(place)).values():
        columns_of(_first_names(path), task, str(path))
    return task.model_copy(update={"source": str(place.absolute())})


def _first_names(path: Path) -> list[str]:
    """Return the columns of a file; of an empty one none. A table of columns without a row is refused."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                csv.field_size_limit(MOST_OF_A_FIELD)
                rows = csv.reader(file, strict=True)
                names = next(rows, [])
                if names and not any(rows):
                    raise ConfigError(f"probes.tasks: {path} has columns and no row", hint=_LAYOUTS)
                return names
            row = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"probes.tasks: {path} cannot be read: {why_unread(error)}", hint=_LAYOUTS) from None
    return list(row) if isinstance(row, dict) else []


def _lacks(name: str, key: str, there: list[str], where: str) -> ConfigError:
    shown = f"Its columns: {', '.join(there)}." if there else "It is empty."
    return ConfigError(
        f"probes.tasks: {where} has no column {name!r}", hint=f"{shown} Name it with {key} of the task. {_LAYOUTS}"
    )
