"""Save and take up a training, bit for bit: safetensors and JSON, checksummed, complete or not there at all."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.errors import CheckpointError, ConfigError, StorageError
from worker.sae.model import SparseAutoencoder
from worker.sae.train_state import TrainState

FINAL = "final"
"""Folder of the finished autoencoder, beside the checkpoints."""
_CONFIG, _MANIFEST = "config.json", "manifest.json"
_STATE, _TRAINER, _SAE = "state.safetensors", "trainer.json", "sae.safetensors"
_FORMAT = 1
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def save(folder: Path, trainee: TrainState, config: JobConfig, *, facts: Mapping[str, Any]) -> CheckpointRef:
    """Write `<folder>/<tokens_seen>/` with all a resumed training needs; `facts` are kept beside it.

    Written beside, flushed to the disk, and renamed last. A readable checkpoint of that many tokens is left as it is.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    target = folder / str(trainee.tokens_seen)
    if target.exists():
        try:
            return CheckpointRef(str(target.absolute()), trainee.tokens_seen, _verified(target, config))
        except CheckpointError:
            _refusing(target, lambda: shutil.rmtree(target))

    def write(place: Path) -> None:
        _write_tensors(place / _STATE, trainee.tensors())
        _write_text(place / _TRAINER, json.dumps({"values": trainee.values(), "facts": dict(facts)}))
        _write_text(place / _CONFIG, config.canonical_json())

    return CheckpointRef(str(target.absolute()), trainee.tokens_seen, _publish(target, write))


def load(uri: str, config: JobConfig, *, sha256: str | None = None, device: torch.device | str = "cpu") -> TrainState:
    """Rebuild the trainee that `save` put away.

    Raises:
        CheckpointError: missing, damaged, not the one `sha256` names, or of another config.
    """
    folder = Path(uri)
    found = _verified(folder, config)
    if sha256 not in (None, found):
        raise CheckpointError(f"the checkpoint {folder} is not the one that was recorded (sha256 {found})")
    try:
        values = json.loads((folder / _TRAINER).read_text())["values"]
        return TrainState.restored(config, load_file(folder / _STATE), values, device=device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


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


def save_final(folder: Path, trainee: TrainState, config: JobConfig, *, facts: Mapping[str, Any]) -> CheckpointRef:
    """Write `<folder>/final/`: the averaged weights and what is needed to use them.

    sae.safetensors holds W_enc, b_enc, W_dec (unit rows), b_pre; config.json the sizes, the kind of normalisation, the
    whole JobConfig and `facts`.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    model, target = trainee.whole().averaged(), folder / FINAL
    about = {
        "format": _FORMAT,
        **trainee.facts(),
        "activation": config.sae.activation,
        "normalize": config.sae.normalize,
        "tokens_seen": trainee.tokens_seen,
        "config": json.loads(config.canonical_json()),
        "facts": dict(facts),
    }

    def write(place: Path) -> None:
        _write_tensors(place / _SAE, model.state_dict())
        _write_text(place / _CONFIG, json.dumps(about, indent=2, sort_keys=True))

    if target.exists():
        _refusing(target, lambda: shutil.rmtree(target))
    return CheckpointRef(str(target.absolute()), trainee.tokens_seen, _publish(target, write))


def load_final(uri: str, *, device: torch.device | str = "cpu") -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Return the finished autoencoder, ready for evaluation, and what its config.json says.

    Raises:
        CheckpointError: missing or damaged.
    """
    folder = Path(uri)
    _verified(folder)
    try:
        about: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
        config = parse(about["config"])
        model = SparseAutoencoder(config.sae, about["d_model"], dtype=config.training.encode_dtype)
        model.load_state_dict(load_file(folder / _SAE))
    except (OSError, SafetensorError, ConfigError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    return model.to(device).eval().requires_grad_(False), about


def _publish(target: Path, write: Callable[[Path], None]) -> str:
    """Let `write` fill a folder beside the target, then put it in place; return the manifest's sha256."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")

    def put_in_place() -> str:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        sums = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        _write_text(partial / _MANIFEST, json.dumps({"format": _FORMAT, "sha256": sums}, sort_keys=True))
        found = _sha256(partial / _MANIFEST)
        _flush(partial)
        partial.rename(target)
        _flush(target.parent)
        return found

    try:
        return _refusing(target, put_in_place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refusing(target: Path, action: Callable[[], _T]) -> _T:
    """Run an action on the disk; turn its refusal into a StorageError."""
    try:
        return action()
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        hint = "free some space, or point ORCH_ARTIFACTS at another disk; the job continues from the checkpoint before"
        raise StorageError(
            f"cannot write {target}: {'the disk is full' if is_full else error}", hint=hint if is_full else ""
        ) from error


def _verified(folder: Path, config: JobConfig | None = None) -> str:
    """Check every file against the manifest, and the config; return the manifest's sha256."""
    try:
        sums = json.loads((folder / _MANIFEST).read_text())["sha256"]
        bad = [name for name, wanted in sums.items() if _sha256(folder / name) != wanted]
        found = _sha256(folder / _MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    if bad:
        raise _damaged(folder, f"{', '.join(bad)} changed since it was written")
    try:
        values = json.loads((folder / _CONFIG).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    # Parsed, not compared as text: a field that a later version adds has its default here.
    if config is not None and parse(values) != config:
        raise CheckpointError(f"the checkpoint {folder} is of another config")
    return found


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} cannot be read ({reason})", hint="delete it: the one before it, or the start, is used"
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode  # safetensors writes for its owner alone; colleagues may read what the umask lets them
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    path.chmod(mode)
    _flush(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    _flush(path)


def _flush(path: Path) -> None:
    """Make the disk hold a file, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
