"""Find the lenses that the configs of a sweep name, before anything is queued: what is stored is their content id."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from orchestrator import lenses
from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from orchestrator.lenses import LensEntry
    from orchestrator.sweep.sweep import Sweep


def with_lenses(engine: Engine | None, sweep: "Sweep") -> "Sweep":
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
        raise ConfigError(
            f"sae.lens: the lens {entry.label} is not there yet: job {entry.job_id}, which trains it, is {entry.state}",
            hint=f"orch wait {entry.job_id}, then enqueue this again.",
        )
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
