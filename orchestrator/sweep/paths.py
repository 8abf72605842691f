"""Check that the files and folders a sweep names exist."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError

_SUFFIXES = (".txt", ".jsonl", ".parquet")


def check_paths(configs: Iterable[JobConfig]) -> None:
    """Check that every path exists; ids of models and data sets are left to the trainer.

    Raises:
        ConfigError: names the first path that is missing.
    """
    named = {("subject.model", config.subject.model) for config in configs}
    named |= {("data.source", config.data.source) for config in configs}
    for key, value in sorted(named):
        is_path = value.startswith((".", "/", "~")) or (key == "data.source" and value.endswith(_SUFFIXES))
        if is_path and not _is_there(Path(value).expanduser()):
            raise ConfigError(
                f"{key}: there is no {value}", hint="A relative path is read from the sweep file's folder; check it."
            )


def _is_there(path: Path) -> bool:
    return path.exists() or any(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
