"""One file of tensors of a checked folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from worker import checked_folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, from whatever device they are on, and flush the file.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors writes for its owner alone; colleagues may read what the umask lets them
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    path.chmod(mode)
    checked_folder.flush(path)


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers and words by name as torch.save does, and flush the file.

    Raises:
        OSError: the disk refuses.
    """
    whole = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
        for name, value in content.items()
    }
    torch.save(whole, path)
    checked_folder.flush(path)
