"""Check that the files and folders a sweep names exist."""

from collections.abc import Collection
from pathlib import Path

from orchestrator.config.job import JobConfig
from orchestrator.config.text_files import is_local, listed
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
        if is_local(source) and not any(True for _ in listed(source)):
            raise _missing("data.source", source)


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
