"""Every job of a report as CSV: the file beside a page that shows a sample."""

import csv
import io
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.report.page_data import Contents
from orchestrator.scaling.types import JobMeasurement

_FIELDS = [field.name for field in fields(JobMeasurement) if field.name != "curve"]


def rows_csv(contents: Contents) -> str:
    """Return one line per job: every field but its curve, and the keys in which the configs differ.

    What is known by epsilon has a column for each.
    """
    configs = {job: flatten(origin.config) for job, origin in contents.origins.items()}
    varied = varied_keys(configs.values())
    records = [
        _record(row) | {key: configs[row.job_id].get(key) for key in varied if row.job_id in configs}
        for row in contents.rows
    ]
    columns = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(row: JobMeasurement) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(row, name)
        if not isinstance(value, Mapping):
            found[name] = value
            continue
        for epsilon, one in value.items():
            ends = zip(("low", "high"), one, strict=True) if isinstance(one, tuple) else [("", one)]
            found |= {f"{name}({epsilon:g}){f'.{end}' if end else ''}": part for end, part in ends}
    return found
