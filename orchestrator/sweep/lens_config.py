"""From what is asked of a lens to the config of its job: what `orch lens train` and `import orch` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.lens.reading import parse_lens
from orchestrator.config.lens.training import LensConfig
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings
from orchestrator.sweep.assignments import read_value
from orchestrator.sweep.paths import check_paths
from orchestrator.sweep.subject_checks import check_subjects

OPTIONS = {
    "subject": "subject.model", "revision": "subject.revision", "data": "data.source", "tokens": "training.max_tokens",
    "lr": "optimizer.lr", "batch_tokens": "training.batch_tokens", "seed": "data.seed",
}  # fmt: skip
"""Of each option, the key of the config that it sets."""


def lens_config(values: Any, options: Mapping[str, Any], *, settings: Settings, where: str = "") -> LensConfig:
    """Return the config of keys and values, and of options, which go before them, checked as far as files here tell.

    `options`: by the names of `OPTIONS`; None: not given. `where`: the file, whose folder relative paths are read from.

    Raises:
        ConfigError: says what is wrong.
    """
    if isinstance(values, Mapping):
        values = {part: dict(inner) if isinstance(inner, Mapping) else inner for part, inner in values.items()}
        here, beside = Path.cwd(), [Path(where).parent.absolute()] if where else []
        for part, inner in values.items():
            if isinstance(inner, dict):
                folders = (*beside, here)
                values[part] = {name: read_value(f"{part}.{name}", value, folders) for name, value in inner.items()}
        for name, key in OPTIONS.items():
            part, _, field = key.partition(".")
            if options.get(name) is not None and isinstance(values.setdefault(part, {}), dict):
                values[part][field] = read_value(key, options[name], (here,))
        if not isinstance(values.get("subject"), dict) or "model" not in values["subject"]:
            raise ConfigError(
                "no language model is named: give SUBJECT, or subject.model of the config",
                hint="Every key and what it takes: orch config schema --lens",
            )
    config = parse_lens(values, where)
    if settings.embedded:  # in the service mode the files are on the workers' machines
        check_paths([config.reading])
    check_subjects([config.reading])
    return config
