"""Single values of many jobs, of their rows or of their configs: a hundred thousand are sorted by one of them."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Float, Integer, Select, Text, cast, func, or_, select, text
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.models import Finite
from orchestrator.results.job_rows import FIELDS_READ, all_jobs

_SAME = {"sae.k": "k", "training.seed": "seed", "training.max_tokens": "max_tokens"}
"""Fields that are a key of the config as it is; n_latents and lr may be what the config left open."""


def select_values(
    session: Session, keys: Sequence[str], *conditions: ColumnElement[bool], sort: str = "", limit: int | None = None
) -> dict[int, dict[str, Any]]:
    """Return by job what each has under some keys, in the order of the ids.

    `keys`: fields of `JobRow` that are in FIELDS_READ, or dotted keys of a config. With `limit` and one of them alone,
    to sort by (from high to low with - before it): the first so many, in that order.
    """
    chosen = {key: _expression(session, key) for key in keys}
    query: Select[Any] = all_jobs().with_only_columns(m.Job.id, *chosen.values(), maintain_column_froms=True)
    query = query.where(*conditions)
    by = sort.removeprefix("-")
    if by and limit is not None and isinstance(chosen[by].type, Integer | Float | Finite):
        order = chosen[by].desc() if sort.startswith("-") else chosen[by].asc()
        query = query.order_by(None).order_by(chosen[by].is_(None), order, m.Job.id).limit(limit)
    elif by and limit is not None:
        return {job_id: {by: value} for job_id, value in _first_by_text(session, query, sort, limit)}
    rows = session.connection().execute(query).all()
    columns = list(zip(*rows, strict=True)) or [()] * (1 + len(keys))
    for at, key in enumerate(keys, start=1):
        if isinstance(chosen[key].type, Text) and "." in key:
            read = {said: _read(key, said) for said in set(columns[at])}
            columns[at] = tuple(map(read.__getitem__, columns[at]))
    if not keys:
        return {job_id: {} for job_id in columns[0]}
    return {job_id: dict(zip(keys, told, strict=True)) for job_id, *told in zip(*columns, strict=True)}


def _first_by_text(session: Session, query: Select[Any], sort: str, limit: int) -> list[tuple[int, Any]]:
    """Return the first jobs in the order of a text, which Python says, with what each has; equal ones by id.

    `query` selects the id and the text. The database groups the ids: what is read is each text once.
    """
    key = sort.removeprefix("-")
    if session.get_bind().dialect.name == "postgresql":  # takes JSON for as cheap to read as a number: one process
        session.execute(text("SET LOCAL parallel_tuple_cost = 0"))
    # With an offset neither database carries whole configs through the grouping.
    job_id, said = query.order_by(None).offset(0).subquery().columns
    grouped = select(said, func.aggregate_strings(cast(job_id, Text), ",")).group_by(said)
    told = [(_read(key, said), ids) for said, ids in session.execute(grouped)]
    told.sort(key=lambda one: sortable(one[0]), reverse=sort.startswith("-"))
    told.sort(key=lambda one: not is_known(one[0]))
    first: list[tuple[int, Any]] = []
    for _, equal in groupby(told, key=lambda one: sortable(one[0])):
        if len(first) < limit:
            first += sorted((int(number), value) for value, ids in equal for number in ids.split(","))
    return first[:limit]


def _read(key: str, said: Any) -> Any:
    """Return what a text says: that of a key of a config is JSON."""
    return said if said is None or "." not in key else json.loads(said)


def is_known(value: Any) -> bool:
    """Say whether a value is one to sort by: else it comes last."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def sortable(value: Any) -> tuple[bool, float, str]:
    """Return a key that puts numbers by size, before texts."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, str(value)


def _expression(session: Session, key: str) -> ColumnElement[Any]:
    """Return the expression on a job for a field, or for the JSON text of a key of its config."""
    if field := _SAME.get(key, "" if "." in key else key):
        return FIELDS_READ[field]()
    return config_text(session, key)


def config_text(session: Session, key: str) -> ColumnElement[Any]:
    """Return the expression on a job for the JSON text of one dotted key of its config; NULL where it has none."""
    part, _, leaf = key.partition(".")
    if session.get_bind().dialect.name == "sqlite":
        return m.Job.config.op("->", return_type=Text())(f"$.{part}.{leaf}")
    from sqlalchemy.dialects.postgresql import JSON

    return cast(cast(m.Job.config, JSON)[(part, leaf)], Text)


def has_one_of(session: Session, key: str, values: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition on a job that its config has one of some values under a dotted key, as Python compares."""
    if key in _SAME:
        numbers = (value for value in values if isinstance(value, int | float) and math.isfinite(value))
        return FIELDS_READ[_SAME[key]]().in_({int(value) for value in numbers if value == int(value)})
    text = config_text(session, key)
    among = text.in_({said for value in values for said in _texts(value)})
    return or_(among, text.is_(None)) if None in values else among


def _texts(value: Any) -> set[str]:
    """Return every JSON text whose value equals this one: 1, 1.0 and true are equal."""
    same: list[Any] = [value]
    if isinstance(value, int | float) and math.isfinite(value):
        same += [float(value)] + [kind(value) for kind in (int, bool) if kind(value) == value]
    if isinstance(value, Mapping):
        return set()
    return {json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in same}
