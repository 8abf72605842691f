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
from orchestrator.results.job_rows import FIELDS_READ, jobs
from orchestrator.results.job_values import has_one_of, is_known, select_values, sortable
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


def choose(
    engine: Engine, choice: Choice, *, ids: Sequence[int] | None = None, states: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[JobRow]:  # fmt: skip
    """Return the jobs of a choice, among some or all, in its order; of those alike the best; what is missing last.

    Of many jobs only what decides is read; whole rows, of those that are returned.

    Raises:
        ConfigError: a key that is neither a column nor one of a config.
    """
    sort = choice.sort.removeprefix("-")
    found = _decisive(engine, choice, ids, states, limit)
    kept = list(found)
    if choice.best_by:
        alike: dict[str, list[int]] = defaultdict(list)
        for job_id, told in found.items():
            alike[repr([told[key] for key in choice.best_by])].append(job_id)
        kept = sorted(best for group in alike.values() for best in _best({job_id: found[job_id] for job_id in group}))
    if sort:
        known = [job_id for job_id in kept if is_known(found[job_id][sort])]
        known.sort(key=lambda job_id: sortable(found[job_id][sort]), reverse=choice.sort.startswith("-"))
        kept = [*known, *(job_id for job_id in kept if not is_known(found[job_id][sort]))]
    rows = {row.id: row for row in jobs(engine, ids=kept[:limit])}
    return [rows[job_id] for job_id in kept[:limit] if job_id in rows]


def _decisive(
    engine: Engine, choice: Choice, ids: Sequence[int] | None, states: Sequence[str] | None, limit: int | None
) -> dict[int, dict[str, Any]]:
    """Return by job what it is chosen and sorted by; of no more than `limit` jobs where the database can tell them."""
    sort = choice.sort.removeprefix("-")
    keys = [*choice.best_by, *([sort] if sort else [])]
    check(keys)
    names = {key: _field(key) for key in keys}
    needed = [*dict.fromkeys([*names.values(), *(("fvu", "l0") if choice.best_by else ())])]
    read = [name for name in needed if "." in name or name in FIELDS_READ]
    with reading(engine) as session:
        conditions = [has_one_of(session, key, values) for key, values in choice.where.items()]
        conditions += [m.Job.kind == "train", *([m.Job.hidden.is_(None)] if ids is None else [])]
        conditions += [] if states is None else [m.Job.state.in_(states)]
        if choice.labels:
            sweeps = session.execute(select(m.SweepRow.id, m.SweepRow.labels))
            having = [row.id for row in sweeps if choice.labels.items() <= dict(row.labels).items()]
            conditions.append(m.Job.sweep_id.in_(having))
        by = choice.sort.replace(sort, _field(sort)) if sort and len(read) == len(needed) else ""
        most = None if choice.best_by or ids is not None else limit
        found = select_values(session, read, *conditions, sort=by, limit=most)
    if ids is not None:
        wanted = set(ids)
        found = {job_id: told for job_id, told in found.items() if job_id in wanted}
    if len(read) < len(needed):  # a field that is worked out from several
        for row in jobs(engine, ids=list(found)):
            found[row.id] |= {name: getattr(row, name) for name in needed if name not in read}
    return {job_id: told | {key: told[name] for key, name in names.items()} for job_id, told in found.items()}


def _field(key: str) -> str:
    """Return the name of a field, by its name or a short one; a dotted key as it is."""
    return key if "." in key else _SHORT.get(key.lower(), key.lower().replace("-", "_"))


def values(engine: Engine, rows: Sequence[JobRow], keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Return by job what it has under some keys: fields of a row, short names such as n, or dotted keys of a config.

    Raises:
        ConfigError: a key that is neither.
    """
    dotted = [key for key in keys if "." in key]
    names = {key: _field(key) for key in keys if "." not in key}
    check(keys)
    configs: dict[int, dict[str, Any]] = {}
    if dotted:
        with reading(engine) as session:
            configs = flat_configs(session, [row.id for row in rows])
    return {
        row.id: {key: getattr(row, names[key]) if key in names else configs[row.id].get(key) for key in keys}
        for row in rows
    }


def checked(choice: Choice) -> Choice:
    """Return a choice whose keys there are.

    Raises:
        ConfigError: a key that is not there; names what is near.
    """
    check([*choice.where, *choice.best_by, *([choice.sort.removeprefix("-")] if choice.sort else [])])
    if wrong := [key for key in choice.where if "." not in key]:
        raise ConfigError(f"where: {wrong[0]!r} is not a key of a config", hint="Such as sae.k: orch config schema")
    return choice


def check(keys: Sequence[str]) -> None:
    """Refuse keys that no job has.

    Raises:
        ConfigError: names what is near.
    """
    columns = {*FIELDS, *_SHORT}
    others = [key for key in keys if "." in key or key.lower().replace("-", "_") not in columns]
    if not others:
        return
    from orchestrator.config.validation import field_paths, near_key  # loads pydantic, which columns need not

    known = [*FIELDS, *_SHORT, *field_paths()]
    for key in others:
        if key not in known:
            near = near_key(key, known)
            raise ConfigError(
                f"{key!r} is neither a column nor a key of a config" + (f"; did you mean {near!r}?" if near else ""),
                hint="Columns: those of orch status -o json. Keys: orch config schema",
            )


def _best(jobs: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Return the job of the lowest fvu at each L0: at another sparsity a lower fvu is no better."""

    def fvu(job_id: int) -> float:
        value = jobs[job_id]["fvu"]
        return value if value is not None and math.isfinite(value) else math.inf

    known = [(told["l0"], job_id) for job_id, told in jobs.items() if told["l0"] is not None]
    best: list[int] = []
    first = math.nan
    for l0, job_id in sorted(pair for pair in known if math.isfinite(pair[0])):
        if not best or not is_same_l0(first, l0):
            best.append(job_id)
            first = l0
        elif fvu(job_id) < fvu(best[-1]):
            best[-1] = job_id
    return best or [min(jobs, key=fvu)]
