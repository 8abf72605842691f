"""A model's files as they lie on this disk: where they are, and what they say without torch or transformers."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator import bounded_file
from orchestrator.config.job import SHIPPED_SUBJECT, SubjectConfig
from orchestrator.config.model_fit import ModelSizes

SHIPPED_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "subject"
"""The model that ships here."""
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
VOCABULARY_KEYS = ("vocab_size",)
_USUAL_BOS = frozenset({"<s>", "<bos>", "<|endoftext|>", "<|begin_of_text|>", "[CLS]", "<|startoftext|>"})
"""Names of BOS tokens that a tokenizer's class may take for its own where no file names one."""
_MOST_HEADER = 1 << 27
"""Bytes of JSON that are read of one file: those of the largest tokenizers are a quarter of that."""


def model_folder(subject: SubjectConfig) -> Path:
    """Return where a model's files are, or would be: here, in a folder, or in the copy the hub's cache has.

    Of copies that are not of the branch, tag or commit asked for none is taken; without one asked for, the newest.
    """
    if subject.model == SHIPPED_SUBJECT:
        return SHIPPED_FOLDER
    folder = Path(subject.model).expanduser()
    if folder.is_dir():
        return folder
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")) / f"models--{subject.model.replace('/', '--')}"
    wanted = subject.revision or "main"
    for name in (_text_of(cache / "refs" / wanted), wanted):
        if name and (cache / "snapshots" / name / "config.json").exists():
            return cache / "snapshots" / name
    copies = [] if subject.revision else (cache / "snapshots").glob("*/config.json")
    newest = max(copies, key=lambda file: file.lstat().st_mtime, default=None)
    return newest.parent if newest else folder


def read_json(file: Path) -> dict[str, Any]:
    """Return what a JSON file says; nothing where it is not there, no JSON object, or larger than any tokenizer."""
    try:
        found = json.loads(bounded_file.read_text(file, what="a model's JSON files", most=_MOST_HEADER))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def model_sizes(subject: SubjectConfig) -> ModelSizes:
    """Return what the config of a model says of its sizes, as far as it is on this disk."""
    described = read_json(model_folder(subject) / "config.json")
    return ModelSizes(number_in(described, DEPTH_KEYS), number_in(described, VOCABULARY_KEYS))


def number_in(config: dict[str, Any], keys: Sequence[str]) -> int | None:
    """Return the first whole number above 0 that a model's config has under one of some keys; None: none."""
    text = config.get("text_config")  # where a model of several modalities keeps its decoder
    for part in (config, text if isinstance(text, dict) else {}):
        for value in map(part.get, keys):
            if type(value) is int and value > 0:
                return value
    return None


def module_names(folder: Path) -> frozenset[str]:
    """Return the modules that the weight files of a folder name, and those these are in; those without weights lack."""
    tensors: set[str] = set()
    for file in folder.glob("*.safetensors"):
        tensors |= _header(file).keys()
    prefixes = (name.split(".")[:-1] for name in tensors)
    return frozenset(".".join(parts[:n]) for parts in prefixes for n in range(1, len(parts) + 1))


def has_bos(folder: Path) -> bool | None:
    """Return whether a tokenizer has a BOS token by its files; None: they leave it to the tokenizer's class."""
    named = read_json(folder / "tokenizer_config.json")
    if "bos_token" in named:
        return named["bos_token"] is not None
    if "bos_token" in read_json(folder / "special_tokens_map.json"):
        return True
    added = read_json(folder / "tokenizer.json").get("added_tokens")
    if not named or not isinstance(added, list):
        return None
    return None if _USUAL_BOS & set(_contents(added)) else False


def _contents(added: Iterable[Any]) -> Iterable[str]:
    return (str(token.get("content")) for token in added if isinstance(token, dict))


def _header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: eight bytes of its length, and JSON with an entry for each tensor."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            found = json.loads(opened.read(length)) if length < _MOST_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if name != "__metadata__"} if isinstance(found, dict) else {}


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
