"""Our own format of a finished autoencoder: a checked folder of the weights its fvu is of, and what they need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from orchestrator.bounded_file import read_text
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import from_stored
from orchestrator.errors import ConfigError
from orchestrator.masking import mask_all
from worker import checked_folder
from worker.formats.tensor_file import write_tensors
from worker.sae.model import SparseAutoencoder
from worker.sae.train_state import TrainState

FINAL = "final"
"""Folder of the finished autoencoder, beside the checkpoints."""
_CONFIG, _WEIGHTS = "config.json", "sae.safetensors"
_FORMAT = 1


class FinalSae(NamedTuple):
    """A finished autoencoder on disk."""

    uri: str
    """Its folder."""
    sha256: str
    """Of its manifest, which holds the sha256 of every other file."""


def save_final(folder: Path, state: TrainState, config: JobConfig, *, facts: Mapping[str, Any]) -> FinalSae:
    """Write `<folder>/final/`: the better of average and weights, and what is needed to use them.

    sae.safetensors holds W_enc, b_enc, W_dec (unit rows), b_pre; config.json the sizes, the kind of normalisation, the
    whole JobConfig, its passwords masked, and `facts`.

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    model = state.whole().best()
    about = {
        "format": _FORMAT,
        **state.facts(),
        "activation": config.sae.activation,
        "normalize": config.sae.normalize,
        "tokens_seen": state.tokens_seen,
        "config": json.loads(config.canonical_json()),
        "facts": dict(facts),
    }

    def fill(partial: Path) -> None:
        write_tensors(partial / _WEIGHTS, model.state_dict())
        checked_folder.write_text(partial / _CONFIG, json.dumps(mask_all(about), indent=2, sort_keys=True))

    target = folder / FINAL
    sha256 = checked_folder.write_folder(target, fill)
    return FinalSae(str(target.absolute()), sha256)


def load_final(uri: str, *, device: torch.device | str = "cpu") -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Return the finished autoencoder, ready for evaluation, and what its config.json says.

    Raises:
        CheckpointError: missing or damaged.
    """
    folder = Path(uri)
    checked_folder.verify(folder)
    try:
        about: dict[str, Any] = json.loads(read_text(folder / _CONFIG, what="a config"))
        config = from_stored(about["config"])
        model = SparseAutoencoder(config.sae, about["d_model"], dtype=config.training.encode_dtype)
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, SafetensorError, ConfigError, ValueError, KeyError, RuntimeError) as error:
        raise checked_folder.unreadable(folder, error) from error
    return model.to(device).eval().requires_grad_(False), about
