"""Thousands of rows in one statement: PostgreSQL takes each column of them as one array, SQLite one row at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, cast, column, func, insert, literal, select
from sqlalchemy.orm import Session


def insert_rows(session: Session, table: Table, rows: Sequence[Mapping[str, Any]], same: Mapping[str, Any]) -> None:
    """Insert rows, at least one, with the same names each, in their order; `same` are values that all of them have.

    The values of rows are texts, numbers and None.
    """
    if session.get_bind().dialect.name == "sqlite":
        session.execute(insert(table), [{**row, **same} for row in rows])
        return
    names = list(rows[0])
    arrays = (_array([row[name] for row in rows], table.c[name]) for name in names)
    columns = (column(name, table.c[name].type) for name in names)
    read = func.unnest(*arrays).table_valued(*columns).render_derived()
    fixed = (literal(value, table.c[name].type) for name, value in same.items())
    session.execute(insert(table).from_select([*names, *same], select(*read.columns, *fixed), include_defaults=False))


def _array(values: Sequence[Any], of: ColumnElement[Any]) -> ColumnElement[Any]:
    from sqlalchemy.dialects.postgresql import ARRAY

    # Written here: psycopg takes three times as long for a list as for the rows that are saved.
    return cast(literal(f"{{{','.join(map(_element, values))}}}", Text()), ARRAY(of.type))


def _element(value: Any) -> str:
    """Return a value as PostgreSQL reads it in the text of an array."""
    if value is None:
        return "NULL"
    assert isinstance(value, str | int | float), "others are written otherwise"
    said = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{said}"'
