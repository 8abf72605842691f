"""Save a training and take it up again, bit for bit: safetensors and JSON in a checked folder."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.extension import is_extension
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import from_stored
from orchestrator.errors import CheckpointError, StorageError
from worker import checked_folder
from worker.formats.tensor_file import write_tensors
from worker.sae.train_state import TrainState

_CONFIG, _STATE, _TRAINER = "config.json", "state.safetensors", "trainer.json"
_log = logging.getLogger(__name__)


def save(folder: Path, state: TrainState, config: JobConfig, *, facts: Mapping[str, Any]) -> CheckpointRef:
    """Write `<folder>/<tokens_seen>/` with all that a resumed training needs; `facts` are kept beside it.

    A readable checkpoint of that many tokens is left as it is.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    target = folder / str(state.tokens_seen)

    def fill(partial: Path) -> None:
        write_tensors(partial / _STATE, state.tensors())
        values = {"values": state.values(), "facts": dict(facts)}
        checked_folder.write_text(partial / _TRAINER, json.dumps(values))
        checked_folder.write_text(partial / _CONFIG, config.canonical_json())

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
        values = json.loads((folder / _TRAINER).read_text())["values"]
        return TrainState.restored(config, load_file(folder / _STATE), values, device=device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise checked_folder.unreadable(folder, error) from error


def facts_of(uri: str) -> dict[str, Any]:
    """Return the facts that were kept beside a checkpoint."""
    found: dict[str, Any] = json.loads((Path(uri) / _TRAINER).read_text())["facts"]
    return found


def newest_readable(
    refs: Iterable[tuple[str, str | None]], config: JobConfig, *, device: torch.device | str = "cpu"
) -> tuple[str, TrainState] | None:
    """Return the first of (uri, sha256), newest first, that can be read, with its uri; None if none can.

    Raises:
        StorageError: not even their folders are there: the disk is away, and starting over would lose the work.
    """
    found = [*refs]
    if found and not any(Path(uri).parent.exists() for uri, _ in found):
        raise StorageError(
            f"none of {len(found)} checkpoints is there, nor the folder of any, such as {Path(found[0][0]).parent}",
            hint="Is the folder of artifacts (ORCH_ARTIFACTS) mounted, and shared by every worker under this path?",
        )
    for uri, sha256 in found:
        try:
            return uri, load(uri, config, sha256=sha256, device=device)
        except CheckpointError as error:
            _log.warning("passed over a checkpoint: %s", error.message)
    return None


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
        values = json.loads((folder / _CONFIG).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise checked_folder.unreadable(folder, error) from error
    # Parsed, not compared as text: a field that a later version adds has its default here.
    if not is_extension(config, from_stored(values)):
        raise CheckpointError(f"the checkpoint {folder} is of another config")
    return sha256
