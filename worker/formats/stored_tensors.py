"""Files of tensors and configs that other programs wrote: read without running what may be in them."""

import json
import re
import zipfile
from codecs import getincrementaldecoder
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.bounded_file import read_text, why_unread
from orchestrator.errors import ConfigError

_ANOTHER = "Name the folder that holds all its files, or fetch them again."
_WHOLE = "Is it whole? Fetch it again."
_PICKLED = {".pt", ".pth", ".bin"}
_BEGINNING = 512
"""Bytes that tell whether a file is of text."""
_SHOWN = 60
_UNREADABLE = (
    OSError, SafetensorError, ValueError, TypeError, RuntimeError, EOFError, KeyError, IndexError, zipfile.BadZipFile,
    UnpicklingError,
)  # fmt: skip


def find(path: Path, *names: str) -> Path | None:
    """Return the file of one of these names: in a folder the first that is there, of a file itself."""
    if path.is_dir():
        return next((path / name for name in names if (path / name).is_file()), None)
    return path if path.name in {Path(name).name for name in names} else None


def beside(path: Path, *names: str) -> Path | None:
    """Return the file of one of these names in a folder, or in that of a file."""
    return find(path if path.is_dir() else path.parent, *names)


def only_match(path: Path, name: re.Pattern[str]) -> Path | None:
    """Return the file whose name matches: in a folder the only one, of a file itself."""
    files = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
    found = [file for file in files if name.match(file.name)]
    return found[0] if len(found) == 1 else None


def names(path: Path) -> frozenset[str]:
    """Return the names of a file's tensors; none where it cannot be read as one of tensors.

    Raises:
        ConfigError: a pickle would run code, or the file is of text.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return frozenset(file.keys())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return frozenset(name.removesuffix(".npy") for name in archive.namelist())
        return frozenset(map(str, _unpickled(path))) if path.suffix in _PICKLED else frozenset()
    except _UNREADABLE as error:
        refusal = _refusal(path, error)
        if refusal is not None:
            raise refusal from error
        return frozenset()


def load(path: Path, wanted: Collection[str] | None = None) -> dict[str, Any]:
    """Return the tensors of a safetensors, npz or pickled file by name; only those wanted, where names are given.

    Of a pickle all that it holds: numbers and words, too. Pages of a file are read when they are used.

    Raises:
        ConfigError: it is missing, cut off, no such file, one of text, or a pickle that would run code.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", hint=_ANOTHER)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if _is_wanted(name, wanted)}  # noqa: SIM118
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files if _is_wanted(name, wanted)}
        if path.suffix in _PICKLED:
            return {str(name): value for name, value in _unpickled(path).items() if _is_wanted(str(name), wanted)}
    except _UNREADABLE as error:
        no_pickle = "it is no file that torch.save wrote, or not all of one"
        why = no_pickle if isinstance(error, UnpicklingError) else why_unread(error)
        raise _refusal(path, error) or ConfigError(f"{path} cannot be read ({why})", hint=_WHOLE) from error
    raise ConfigError(f"{path} is no .safetensors, .npz or .pt file")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object.

    Raises:
        ConfigError: it is missing, too large, or holds no JSON object.
    """
    try:
        data = json.loads(read_text(path, what="a config"))
    except OSError as error:
        raise ConfigError(why_unread(error), hint=_ANOTHER) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({why_unread(error)})", hint=_WHOLE) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return data


def json_or_nothing(path: Path | None) -> dict[str, Any]:
    """Return a JSON file's object, or an empty one where there is none: to tell formats apart."""
    try:
        return read_json(path) if path else {}
    except ConfigError:
        return {}


def value(config: Mapping[str, Any], key: str, where: Path) -> Any:
    """Return the value of a key that a config must have.

    Raises:
        ConfigError: it is not there.
    """
    if config.get(key) is None:
        raise ConfigError(f"{where} lacks {key}")
    return config[key]


def whole_number(config: Mapping[str, Any], key: str, where: Path) -> int:
    """Return a count that a config must have.

    Raises:
        ConfigError: it is not there, or is not a whole number above 0.
    """
    found = value(config, key, where)
    if isinstance(found, bool) or not isinstance(found, int | float) or found != int(found) or found <= 0:
        raise ConfigError(f"{key} = {found!r} in {where} is not a whole number above 0")
    return int(found)


def need(tensors: Mapping[str, Any], wanted: Iterable[str], where: Path) -> None:
    """Refuse a file that lacks a tensor.

    Raises:
        ConfigError: it does; the message names what there is.
    """
    missing = [name for name in wanted if not isinstance(tensors.get(name), Tensor)]
    if missing:
        there = ", ".join(sorted(map(str, tensors))[:12]) or "nothing"
        raise ConfigError(f"{where} lacks {', '.join(missing)}; there is: {there}")


def oriented(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix as (rows, columns); one that fits the other way round alone is turned, without a copy."""
    is_turned = rows != columns and tuple(tensor.shape) == (columns, rows)
    return tensor.T if is_turned else tensor


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's type as torch names it, without its prefix."""
    return str(tensor.dtype).removeprefix("torch.")


def _unpickled(path: Path) -> dict[Any, Any]:
    data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(data, Mapping):
        raise ValueError(f"it holds a {type(data).__name__}, not tensors by name")
    return dict(data)


def _is_wanted(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or name in wanted


def _refusal(path: Path, error: Exception) -> ConfigError | None:
    """Return what a file that could not be read is, where it is no file of tensors at all, or one that is not safe."""
    if isinstance(error, UnpicklingError) and _is_pickle(path):
        return ConfigError(
            f"{path} is a pickle with more than tensors in it, and reading that can run code: it is not read",
            hint="Where you trust it, load it with the program that wrote it and save its state_dict as .safetensors.",
        )
    if line := _first_line(path):
        is_pointer = line.startswith("version https://git-lfs")
        return ConfigError(
            f"{path} is plain text, not tensors: it begins with {line[:_SHOWN]!r}",
            hint="It is a pointer of Git LFS: fetch the file itself by git lfs pull." if is_pointer else _ANOTHER,
        )
    return None


def _is_pickle(path: Path) -> bool:
    """Say whether a file is, or begins with, a whole pickle, or is the archive that torch.save makes of one."""
    try:
        with path.open("rb") as file:
            return zipfile.is_zipfile(path) or sum(1 for _ in genops(file)) > 1
    except (ValueError, OSError, MemoryError):
        return False


def _first_line(path: Path) -> str:
    """Return the first line of a file of text; empty where it begins with bytes that are none."""
    with suppress(OSError, UnicodeDecodeError), path.open("rb") as file:
        text = getincrementaldecoder("utf-8")().decode(file.read(_BEGINNING))
        lines = text.expandtabs().strip().splitlines()
        return lines[0] if lines and all(map(str.isprintable, lines)) else ""
    return ""
