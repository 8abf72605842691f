"""Rows as programs read them: JSON objects and CSV lines, times in RFC 3339, nothing that is not a number."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cli.display.formats import moment

if TYPE_CHECKING:
    from orchestrator.results import JobRow


def record(row: Any) -> dict[str, Any]:
    """Return a row (a dataclass or a NamedTuple) as a JSON object."""
    if is_dataclass(row) and not isinstance(row, type):
        values = {field.name: getattr(row, field.name) for field in fields(row)}
    else:
        values = row._asdict()
    return plain(values)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name as a JSON object."""
    return {name: _plain(name, value) for name, value in values.items()}


def job_records(rows: "Sequence[JobRow]") -> list[dict[str, Any]]:
    """Return jobs as JSON objects that all have the same names: a field for each swept key of any of them."""
    from orchestrator.results import flat_jobs

    return [plain(values) for values in flat_jobs(rows)]


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV with a header; an empty cell is a missing value."""
    out = io.StringIO()
    names = list(records[0]) if records else []
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return out.getvalue().rstrip("\n")


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return moment(value) if name.endswith("_at") or name == "at" else value
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    return [_plain("", inner) for inner in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ";".join(f"{key}={inner}" for key, inner in value.items())
    return value
