"""Thousands of rows or values in one statement: PostgreSQL takes them as arrays, SQLite one at a time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    SQLColumnExpression,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine


def insert_rows(session: Session, table: Table, rows: Sequence[Mapping[str, Any]], same: Mapping[str, Any]) -> None:
    """Insert rows, at least one, with the same names each, in their order; `same` are values that all of them have.

    The values of rows are texts, numbers and None.
    """
    names = list(rows[0])
    if session.get_bind().dialect.name == "sqlite":
        places = ", ".join("?" * (len(names) + len(same)))
        statement = f"INSERT INTO {table.name} ({', '.join([*names, *same])}) VALUES ({places})"
        # SQLAlchemy would take longer to prepare each row than SQLite to write it.
        values = [(*(row[name] for name in names), *same.values()) for row in rows]
        session.connection().exec_driver_sql(statement, values)
        return
    arrays = (_array(bindparam(name, type_=Text()), table.c[name].type) for name in names)
    columns = (column(name, table.c[name].type) for name in names)
    read = func.unnest(*arrays).table_valued(*columns).render_derived()
    fixed = (literal(value, table.c[name].type) for name, value in same.items())
    write = insert(table).from_select([*names, *same], select(*read.columns, *fixed), include_defaults=False)
    # Beside the statement, which is a cycle and stays for long. Lists: psycopg takes three times as long as they save.
    session.execute(write, {name: _text(row[name] for row in rows) for name in names})


def among(session: Session, of: SQLColumnExpression[str], values: Sequence[str]) -> ColumnElement[bool]:
    """Return whether a column has one of thousands of values, each of which PostgreSQL would read as a parameter."""
    if session.get_bind().dialect.name == "sqlite":
        return of.in_(values)
    return of.in_(select(func.unnest(_array(literal(_text(values), Text()), Text()))))


def _array(text: ColumnElement[str], of: TypeEngine[Any]) -> ColumnElement[Any]:
    from sqlalchemy.dialects.postgresql import ARRAY

    return cast(text, ARRAY(of))


def _text(values: Iterable[Any]) -> str:
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    """Return a value as PostgreSQL reads it in the text of an array."""
    if value is None:
        return "NULL"
    assert isinstance(value, str | int | float), "others are written otherwise"
    said = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{said}"'
