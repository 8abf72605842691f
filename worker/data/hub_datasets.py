"""Data sets of the Hugging Face hub, or of its cache on this machine: found, not yet downloaded."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from worker.subject import hub


class FoundDataset(NamedTuple):
    """A data set that is there."""

    builder: Any
    """Of the library `datasets`."""
    is_online: bool
    """Whether the hub can be reached; if not, it comes from the cache."""


def find_dataset(name: str, config: str | None, revision: str | None, *, key: str, instead: str) -> FoundDataset:
    """Return what builds a data set of the hub; `key` asked for it, and `instead` is what else can be given.

    Raises:
        SubjectError: there is no such data set, or the hub refuses it.
        MachineError: it is not cached, and the hub cannot be reached.
    """
    import datasets
    from datasets.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    is_online = hub.is_reachable()
    if not is_online and not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        raise hub.out_of_reach(
            f"{key}: {name!r} is neither a file nor a cached data set, and the hub cannot be reached",
            f"{instead}, or check the id and the network.",
        )
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    except (OSError, ValueError) as error:
        raise hub.refused(f"data set {name!r}", error, "Check the id, name and revision.") from None
    return FoundDataset(builder, is_online)
