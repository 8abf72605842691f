"""Check that the files and folders a sweep names exist."""

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from orchestrator.config.job import JobConfig
from orchestrator.config.text_files import SUFFIXES, is_local, listed
from orchestrator.errors import ConfigError


def check_paths(configs: Collection[JobConfig]) -> None:
    """Check that every path exists; ids of models and data sets are left to the trainer.

    Raises:
        ConfigError: names the first path that is missing.
    """
    models = {config.subject.model for config in configs}
    sources = {config.data.source for config in configs}
    for model in sorted(models):
        if model.startswith((".", "/", "~")) and not Path(model).expanduser().exists():
            raise _missing("subject.model", model)
        if Path(model).expanduser().is_dir():
            _check_model_folder(model)
    for source in sorted(sources):
        if is_local(source):
            _check_text(source)


def _check_text(source: str) -> None:
    """Check that a text has a file, by the first that is found: a folder may hold many."""
    first = next(listed(source), None)
    kinds = ", ".join(SUFFIXES)
    if first is None and Path(source).expanduser().is_dir():
        raise ConfigError(f"data.source: {source} holds no {kinds}", hint="Files that begin with a dot are left out.")
    if first is None:
        raise _missing("data.source", source)
    if first.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"data.source: {first} is no text", hint=f"Texts are read from {kinds} files.")


def doubtful_ids(configs: Collection[JobConfig], folder: Path) -> list[str]:
    """Say which ids of models and data sets are spelt nearly as what is in a folder: a path was meant, perhaps."""
    there = {path.name: path.is_dir() for path in folder.glob("*")}
    folders = [name for name, is_folder in there.items() if is_folder]
    found = []
    for key, kind, value, names in sorted({
        row for config in configs for row in (
            ("subject.model", "model", config.subject.model, tuple(folders)),
            ("data.source", "data set", config.data.source, tuple(there)),
        )
    }):  # fmt: skip
        is_id = not any(sign in value for sign in "/:") and not is_local(value)
        if is_id and (near := get_close_matches(value, names, n=1, cutoff=0.75)):
            found.append(f"{key}: no file or folder {value} is here, so a {kind} of the hub is meant; or {near[0]}?")
    return found


def _check_model_folder(model: str) -> None:
    for wanted, called in (("config.json", "config.json"), ("*.safetensors", "weights in safetensors")):
        if not any(Path(model).expanduser().glob(wanted)):
            raise ConfigError(
                f"subject.model: {model} holds no {called}", hint="Give a folder written by model.save_pretrained."
            )


def _missing(key: str, value: str) -> ConfigError:
    return ConfigError(
        f"{key}: there is no {value}", hint="A relative path is read from the sweep file's folder; check it."
    )
