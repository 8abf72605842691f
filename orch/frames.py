"""Rows as pandas frames: a row per thing, a column per field, times as timestamps in UTC."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_DTYPES: dict[Any, str] = {int: "int64", int | None: "Int64", float: "float64", float | None: "float64"}


def frame(records: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> "DataFrame":
    """Return records as a frame, with these columns by name and type, also where there are no records; more follow.

    Names and types of columns do not depend on what is in them: numbers that may be missing are NaN, whole ones
    `Int64`. Fields named `…_at` are epoch seconds, and become timestamps.
    """
    import pandas as pd

    names = dict.fromkeys([*columns, *(name for record in records for name in record)])
    return pd.DataFrame(
        {name: _column(name, [record.get(name) for record in records], columns.get(name)) for name in names}
    )


def _column(name: str, values: list[Any], kind: Any) -> "Series[Any]":
    import pandas as pd

    if name.endswith("_at"):
        return pd.to_datetime(pd.Series(values, dtype="float64"), unit="s", utc=True).dt.as_unit("us")
    if kind in _DTYPES:
        return pd.Series(values, dtype=_DTYPES[kind])
    found = {type(value) for value in values} - {type(None)}
    if found and found <= {int, float}:
        return pd.Series(values, dtype="float64" if float in found else "Int64" if None in values else "int64")
    return pd.Series(values, dtype=object).infer_objects()
