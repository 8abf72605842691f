"""What depends on model and text alone: computed once, kept on disk by its content's key, shared by evaluations.

An entry is a checked folder `<key>/` with one safetensors file and the JSON of what it is of. It is whole or not there:
two processes that compute the same at once both write it beside its place, and the second finds the first one's.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.errors import StorageError
from worker.checked_folder import flush, write_folder, write_text

TENSORS, OF = "tensors.safetensors", "of.json"


class SharedStore:
    """A folder of entries. `orch gc` collects those that nobody used for long: using one touches it."""

    def __init__(self, folder: Path) -> None:
        """Keep entries in a folder, which need not exist yet."""
        self._folder = folder
        self.refusal: StorageError | None = None
        """Why an entry was not kept: the disk was full, or refused. What was measured is right all the same."""

    def get(self, of: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of an entry, on the CPU, memory-mapped; computed and kept where it is not there.

        `of` says in JSON what they are of: everything that decides their values, with the name of what they are.
        An entry that cannot be read is computed anew; one that cannot be written is returned, and not kept
        (`refusal`). Nobody writes to what is returned.
        """
        place = self._folder / key_of(of)
        found = self._read(place)
        if found is not None:
            return found
        computed = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
        try:
            self._write(place, of, computed)
        except StorageError as error:
            self.refusal = error
            return computed
        return self._read(place) or computed

    def _read(self, place: Path) -> dict[str, Tensor] | None:
        try:
            found = load_file(place / TENSORS)
            os.utime(place)
        except (OSError, SafetensorError):
            return None
        return found

    def _write(self, place: Path, of: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            flush(folder / TENSORS)
            write_text(folder / OF, json.dumps(of, sort_keys=True))

        try:
            write_folder(place, fill)
        except StorageError:
            with suppress(OSError, SafetensorError):
                load_file(place / TENSORS)  # another process wrote it meanwhile
                return
            raise


def key_of(of: Mapping[str, Any]) -> str:
    """Return the name of an entry: the sha256 of what it is of."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
