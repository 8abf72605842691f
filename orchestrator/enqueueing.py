"""From a sweep file to jobs in the queue: what `orch enqueue` and `import orch` share."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from orchestrator import results
from orchestrator.errors import ConfigError
from orchestrator.job_states import FREED
from orchestrator.settings import Settings
from orchestrator.sweep import NO_FILE, check_paths, check_subjects, expand, expand_text
from orchestrator.sweep.sweep import Sweep


def read_sweep(
    source: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    settings: Settings,
    name: str | None = None,
) -> Sweep:
    """Return the sweep of a file, of the text of one, or of its keys and values, checked as far as files here tell.

    `name`: of the sweep, instead of its own. Relative paths of a text, or of keys, are looked for in this folder.

    Raises:
        ConfigError: says what is wrong, and where.
    """
    if isinstance(source, Path):
        sweep = expand(source, overrides, name=name)
    else:
        text = source if isinstance(source, str) else _written(source)
        sweep = expand_text(text, NO_FILE, overrides, name=name)
    if settings.embedded:  # in the service mode the files are on the workers' machines
        check_paths(sweep.configs)
    check_subjects(sweep.configs)
    return sweep


def jobs_of(engine: Engine, sweep: Sweep, job_ids: Sequence[int | None]) -> list[int]:
    """Return the jobs of a sweep's configs: the new ones, then those there that can still count.

    `job_ids`: by config, None where the sweep held it already: those of `queue.Enqueued`.

    Raises:
        StorageError: the database did not answer.
    """
    new = [job_id for job_id in job_ids if job_id is not None]
    pairs = zip(sweep.configs, job_ids, strict=True)
    wanted = {config.config_id for config, job_id in pairs if job_id is None}
    there = results.jobs(engine, sweep=sweep.name) if wanted else []
    return new + [row.id for row in there if row.config_id in wanted and row.state not in FREED]


def _written(values: Mapping[str, Any]) -> str:
    """Return keys and values as the text of a sweep file: JSON is YAML, and keeps text apart from numbers."""
    try:
        return json.dumps(values, indent=2, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"this cannot stand in a sweep file: {error}", hint="Use text, numbers, lists and dicts."
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy
        return value.item()
    raise TypeError(f"{value!r} is neither text, a number, a list nor a dict")
