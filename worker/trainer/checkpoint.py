"""Save a training and take it up again, bit for bit: safetensors and JSON in a checked folder."""

import json
import logging
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
from orchestrator.errors import CheckpointError, CheckpointsElsewhere
from orchestrator.masking import mask_all
from worker import checked_folder
from worker.formats.tensor_file import write_tensors
from worker.sae.train_state import TrainState

_CONFIG, _STATE, _TRAINER = "config.json", "state.safetensors", "trainer.json"
_MOST_OF_A_CURVE = 512 * bounded_file.MB
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
    """Return the newest checkpoint of a job that can be read, with its uri; None if none can.

    `uris` are those that were recorded; every other one in `folder`, the job's, counts as well where its manifest and
    config prove it: a database that was brought back from a copy knows none of the later ones. One outside is not read.

    Raises:
        CheckpointsElsewhere: of those recorded not even a folder is there: starting over would lose the work.
    """
    recorded = [Path(uri) for uri in uris]
    found = {path for path in folder.glob("*/*") if path.name.isdecimal() and path.parent.name.isdecimal()}
    inside = {path for path in found.union(recorded) if path.resolve().is_relative_to(folder.resolve())}
    if recorded and not any(path.parent.exists() for path in inside):
        raise CheckpointsElsewhere(
            f"none of {len(recorded)} checkpoints is there, nor the folder of any, such as {recorded[0].parent}",
            hint="Is the folder of artifacts (ORCH_ARTIFACTS, else ORCH_HOME) mounted, and shared by every worker "
            "under the path it had when this job began?",
        )
    for path in sorted(inside, key=_age, reverse=True):
        try:
            return str(path), load(str(path), config, device=device)
        except CheckpointError as error:
            _log.warning("passed over a checkpoint: %s", error.message)
    return None


def _age(path: Path) -> tuple[int, int]:
    """Return the tokens of a checkpoint and its attempt."""
    tokens, attempt = path.name, path.parent.name
    return int(tokens) if tokens.isdecimal() else 0, int(attempt) if attempt.isdecimal() else 0


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
