"""Which jobs to show, by keys of their configs and labels of their sweeps; in which order, and which of those alike."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import ConfigError
from orchestrator.results.rows import JobRow
from orchestrator.results.varied_keys import flat_configs
from orchestrator.scaling.sparsity import is_same_l0

_SHORT = {"n": "n_latents", "tokens": "tokens_seen", "t": "tokens_to_convergence", "dead": "dead_share"}
FIELDS = tuple(field.name for field in fields(JobRow))


class Choice(NamedTuple):
    """What a person asked for of a list of jobs."""

    where: Mapping[str, Sequence[Any]] = {}
    """By dotted key of the config: the values of which a job must have one."""
    labels: Mapping[str, str] = {}
    """Labels that its sweep must have."""
    best_by: Sequence[str] = ()
    """Of the jobs with the same values of these keys, and of one L0, the one of the lowest fvu alone."""
    sort: str = ""
    """A key to sort by, from low to high; with - before it from high to low. Empty: by id."""

    @property
    def is_whole(self) -> bool:
        """Say whether every job is meant, in the order of their ids."""
        return self == Choice()


def matching(engine: Engine, choice: Choice, ids: Sequence[int] | None) -> list[int]:
    """Return the jobs of a choice, among some or all, by id."""
    query = select(m.Job.id, m.SweepRow.labels).join(m.SweepRow, m.SweepRow.id == m.Job.sweep_id).order_by(m.Job.id)
    query = query.where(m.Job.hidden.is_(None)) if ids is None else query
    wanted = None if ids is None else set(ids)
    with reading(engine) as session:
        found = [
            row.id
            for row in session.execute(query)
            if (wanted is None or row.id in wanted) and choice.labels.items() <= dict(row.labels).items()
        ]
        if not choice.where:
            return found
        configs = flat_configs(session, found)
    return [
        job_id for job_id in found if all(configs[job_id].get(key) in values for key, values in choice.where.items())
    ]


def chosen(engine: Engine, rows: Sequence[JobRow], choice: Choice) -> list[JobRow]:
    """Return jobs in the order of a choice, of those alike the best; what is missing comes last.

    Raises:
        ConfigError: a key that is neither a column nor one of a config.
    """
    keys = [*choice.best_by, *([choice.sort.removeprefix("-")] if choice.sort else [])]
    found = values(engine, rows, keys)
    kept = list(rows)
    if choice.best_by:
        alike: dict[str, list[JobRow]] = defaultdict(list)
        for row in rows:
            alike[repr([found[row.id][key] for key in choice.best_by])].append(row)
        kept = sorted((best for group in alike.values() for best in _best(group)), key=lambda row: row.id)
    if not choice.sort:
        return kept
    key = choice.sort.removeprefix("-")
    known = [row for row in kept if _is_known(found[row.id][key])]
    known.sort(key=lambda row: _sortable(found[row.id][key]), reverse=choice.sort.startswith("-"))
    return [*known, *(row for row in kept if not _is_known(found[row.id][key]))]


def values(engine: Engine, rows: Sequence[JobRow], keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Return by job what it has under some keys: fields of a row, short names such as n, or dotted keys of a config.

    Raises:
        ConfigError: a key that is neither.
    """
    dotted = [key for key in keys if "." in key]
    names = {key: _SHORT.get(key.lower(), key.lower().replace("-", "_")) for key in keys if "." not in key}
    check(keys)
    configs: dict[int, dict[str, Any]] = {}
    if dotted:
        with reading(engine) as session:
            configs = flat_configs(session, [row.id for row in rows])
    return {
        row.id: {key: getattr(row, names[key]) if key in names else configs[row.id].get(key) for key in keys}
        for row in rows
    }


def check(keys: Sequence[str]) -> None:
    """Refuse keys that no job has.

    Raises:
        ConfigError: names what is near.
    """
    if not keys:
        return
    from orchestrator.config.validation import field_paths, near_key  # loads pydantic, which a bare list need not

    known = [*FIELDS, *_SHORT, *field_paths()]
    for key in keys:
        name = key if "." in key else key.lower().replace("-", "_")
        if name not in known:
            near = near_key(key, known)
            raise ConfigError(
                f"{key!r} is neither a column nor a key of a config" + (f"; did you mean {near!r}?" if near else ""),
                hint="Columns: those of orch status -o json. Keys: orch config schema",
            )


def _best(rows: Sequence[JobRow]) -> list[JobRow]:
    """Return the job of the lowest fvu at each L0: at another sparsity a lower fvu is no better."""
    known = [(row.l0, row) for row in rows if row.l0 is not None and math.isfinite(row.l0)]
    best: list[JobRow] = []
    first = math.nan
    for l0, row in sorted(known, key=lambda pair: (pair[0], pair[1].id)):
        if not best or not is_same_l0(first, l0):
            best.append(row)
            first = l0
        elif _fvu(row) < _fvu(best[-1]):
            best[-1] = row
    return best or [min(rows, key=_fvu)]


def _fvu(row: JobRow) -> float:
    return row.fvu if row.fvu is not None and math.isfinite(row.fvu) else math.inf


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Return a key that puts numbers by size, before texts."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, str(value)
