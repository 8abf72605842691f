"""Save a training and take it up again, bit for bit: safetensors and JSON in a checked folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from orchestrator import bounded_file
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.extension import is_extension
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import from_stored
from orchestrator.errors import CheckpointError
from orchestrator.masking import mask_all
from worker import checked_folder, checkpoint_search
from worker.formats.tensor_file import write_tensors
from worker.sae.train_state import TrainState

_CONFIG, _STATE, _TRAINER = "config.json", "state.safetensors", "trainer.json"
_MOST_OF_A_CURVE = 512 * bounded_file.MB


def save(folder: Path, state: TrainState, config: JobConfig, *, facts: Mapping[str, Any]) -> CheckpointRef:
    """Write `<folder>/<tokens_seen>/` with all that a resumed training needs; `facts` are kept beside it.

    A readable checkpoint of that many tokens is left as it is.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    target = folder / str(state.tokens_seen)

    def fill(partial: Path) -> None:
        write_tensors(partial / _STATE, state.tensors())
        values = {"values": state.values(), "facts": mask_all(facts)}
        checked_folder.write_text(partial / _TRAINER, json.dumps(values))
        checked_folder.write_text(partial / _CONFIG, json.dumps(_masked(config)))

    sha256 = _readable_sha256(target, config) or checked_folder.write_folder(target, fill)
    return CheckpointRef(str(target.absolute()), state.tokens_seen, sha256)


def load(uri: str, config: JobConfig, *, sha256: str | None = None, device: torch.device | str = "cpu") -> TrainState:
    """Rebuild the state that `save` wrote.

    Raises:
        CheckpointError: missing, damaged, not the one `sha256` names, or of another config.
    """
    folder = Path(uri)
    found = _verify(folder, config)
    if sha256 not in (None, found):
        raise CheckpointError(f"the checkpoint {folder} is not the one that was recorded (sha256 {found})")
    try:
        values = _trainer(folder)["values"]
        return TrainState.restored(config, load_file(folder / _STATE), values, device=device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise checked_folder.unreadable(folder, error) from error


def facts_of(uri: str) -> dict[str, Any]:
    """Return the facts that were kept beside a checkpoint."""
    found: dict[str, Any] = _trainer(Path(uri))["facts"]
    return found


def newest_readable(
    uris: Iterable[str], config: JobConfig, *, folder: Path, device: torch.device | str = "cpu"
) -> tuple[str, TrainState] | None:
    """Return the newest checkpoint of a job that can be read, with its uri: `checkpoint_search`.

    Raises:
        CheckpointsElsewhere: as there.
    """
    return checkpoint_search.newest_readable(uris, folder=folder, load=lambda uri: load(uri, config, device=device))


def _readable_sha256(folder: Path, config: JobConfig) -> str | None:
    """Return the sha256 of a checkpoint's manifest; None where it is missing or damaged."""
    if not folder.exists():
        return None
    try:
        return _verify(folder, config)
    except CheckpointError:
        return None


def _verify(folder: Path, config: JobConfig) -> str:
    """Check a checkpoint's files and its config; return the sha256 of its manifest."""
    sha256 = checked_folder.verify(folder)
    try:
        values = json.loads(bounded_file.read_text(folder / _CONFIG, what="a config"))
    except (OSError, ValueError) as error:
        raise checked_folder.unreadable(folder, error) from error
    # Parsed, not compared as text: a field that a later version adds has its default here.
    if not is_extension(from_stored(_masked(config)), from_stored(_masked(from_stored(values)))):
        raise CheckpointError(f"the checkpoint {folder} is of another config")
    return sha256


def _trainer(folder: Path) -> dict[str, Any]:
    """Return what is kept beside the tensors: the curve, counters, and the facts of the attempt."""
    found: dict[str, Any] = json.loads(bounded_file.read_text(folder / _TRAINER, what="a curve", most=_MOST_OF_A_CURVE))
    return found


def _masked(config: JobConfig) -> dict[str, Any]:
    """Return a config as it is kept beside its weights: a copy of the folder tells nobody a password."""
    found: dict[str, Any] = mask_all(json.loads(config.canonical_json()))
    return found
