"""Where tensors go, as a person names it: devices and types, refused in plain words."""

import torch

from orchestrator.errors import ConfigError
from worker.accelerator import choose
from worker.devices import NO_GPU_HINT

_TYPES = ("float32", "bfloat16", "float16", "float64")


def device_of(name: str | torch.device) -> torch.device:
    """Return a device of this machine; auto is the GPU where there is one.

    Raises:
        ConfigError: not a device, or not one of this machine.
    """
    try:
        device = torch.device(choose("auto") if name == "auto" else name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"{name!r} is not a device", hint="Devices: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device}: torch sees no such GPU on this machine", hint=NO_GPU_HINT)
    return device


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """Return a type of floats.

    Raises:
        ConfigError: it is none.
    """
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in _TYPES:
        raise ConfigError(f"{name} is no type of a model's numbers", hint=f"Types: {', '.join(_TYPES)}")
    return dtype
