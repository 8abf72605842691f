"""From a sweep file to jobs in the queue: what `orch enqueue` and `import orch` share."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from orchestrator import lenses, results
from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError, NotFound
from orchestrator.job_states import FREED, OPEN
from orchestrator.settings import Settings
from orchestrator.sweep import NO_FILE, check_evaluation, check_paths, check_subjects, doubtful_ids, expand, expand_text
from orchestrator.sweep.sweep import Sweep

if TYPE_CHECKING:
    from orchestrator.lenses import LensEntry


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
    check_evaluation(sweep)
    return sweep


def doubts(sweep: Sweep, file: Path, *, settings: Settings) -> list[str]:
    """Return what of a sweep that was read from a file is allowed, and yet is hardly what was meant."""
    if not settings.embedded:  # the files are on the workers' machines
        return []
    return doubtful_ids(sweep.configs, file.parent)


def with_lenses(engine: Engine | None, sweep: Sweep) -> Sweep:
    """Return a sweep whose configs have the content ids of the lenses they name; without an engine there is no lens.

    Raises:
        NotFound: there is no lens of that name.
        ConfigError: it is not trained yet, or is of another model or revision than the config reads.
    """
    named = {config.sae.lens for config in sweep.configs if config.sae.lens is not None}
    if not named:
        return sweep
    if engine is None:
        raise NotFound(f"sae.lens: there is no lens {min(named)!r}: there is no database yet", hint="orch lens train")
    found = {name: lenses.named(engine, name) for name in sorted(named)}
    return replace(sweep, configs=tuple(_with_id(config, found) for config in sweep.configs))


def _with_id(config: JobConfig, found: "dict[str, LensEntry]") -> JobConfig:
    if config.sae.lens is None:
        return config
    entry = found[config.sae.lens]
    if entry.sha256 is None:
        raise _not_there(entry)
    for key, mine, its in (
        ("model", config.subject.model, entry.model),
        ("revision", config.subject.revision, entry.revision),
    ):
        if mine != its:
            raise ConfigError(
                f"sae.lens: the lens {entry.label} is of subject.{key} = {its}, and the config reads {mine}",
                hint=f"Set subject.{key}: {its or 'null'}, or name a lens of this {key}: orch lens list",
            )
    return config.model_copy(update={"sae": config.sae.model_copy(update={"lens": entry.sha256})})


def _not_there(entry: "LensEntry") -> ConfigError:
    """Return what to say of a lens whose job has none: it may still come, or it will not."""
    job = f"job {entry.job_id}"
    if entry.state in OPEN:
        said, hint = f"is not there yet: {job}, which trains it, is {entry.state}", f"orch wait {entry.job_id}"
    elif entry.state in FREED:
        said, hint = f"is not there: {job}, which was to train it, is {entry.state}", f"orch retry {entry.job_id}"
    else:
        said, hint = f"is not there: {job}, which was to train it, has {entry.outcome}", "orch lens train, a lower --lr"
    return ConfigError(f"sae.lens: the lens {entry.label} {said}", hint=f"{hint}, then enqueue this again.")


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
