"""Save the training of a lens and take it up again, bit for bit: safetensors and JSON in a checked folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from orchestrator import bounded_file
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.lens.training import LensConfig
from orchestrator.errors import CheckpointError
from worker import checked_folder
from worker.formats.tensor_file import write_tensors
from worker.lens_training.state import LensState

_STATE, _VALUES = "state.safetensors", "training.json"
_MOST_OF_A_CURVE = 64 * bounded_file.MB


def save(folder: Path, state: LensState, config: LensConfig, *, source: Mapping[str, Any]) -> CheckpointRef:
    """Write `<folder>/<tokens_seen>/`; `source`: which model and text it reads, kept beside it.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    target = folder / str(state.tokens_seen)
    values = {"config_id": config.config_id, "source": dict(source), "values": state.values()}

    def fill(partial: Path) -> None:
        write_tensors(partial / _STATE, state.tensors())
        checked_folder.write_text(partial / _VALUES, json.dumps(values))

    return CheckpointRef(str(target.absolute()), state.tokens_seen, checked_folder.write_folder(target, fill))


def load(uri: str, config: LensConfig, *, device: torch.device | str = "cpu") -> LensState:
    """Rebuild the state that `save` wrote.

    Raises:
        CheckpointError: missing, damaged, or of another config.
    """
    folder = Path(uri)
    checked_folder.verify(folder)
    try:
        found = _values(folder)
        if found["config_id"] != config.config_id:
            raise CheckpointError(f"the checkpoint {folder} is of another config")
        return LensState.restored(config, load_file(folder / _STATE), found["values"], device=device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise checked_folder.unreadable(folder, error) from error


def source_of(uri: str) -> dict[str, Any]:
    """Return which model and text a checkpoint was trained on."""
    found: dict[str, Any] = _values(Path(uri))["source"]
    return found


def _values(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        bounded_file.read_text(folder / _VALUES, what="the state of a lens", most=_MOST_OF_A_CURVE)
    )
    return found
