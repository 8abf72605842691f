"""Choose the device a trainer computes on, and check that it has the precision a config asks for."""

import torch

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError, MachineError
from worker.devices import NO_GPU_HINT, trainer_devices


def choose(name: str) -> str:
    """Return the device that a trainer computes on, the first one of several; auto is the GPU where there is one.

    Raises:
        MachineError: a GPU is asked for and torch sees none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    devices = trainer_devices(name)
    if devices[0] != "cpu" and len(devices) > torch.cuda.device_count():
        raise MachineError(f"device {name}: torch sees {torch.cuda.device_count()} GPUs", hint=NO_GPU_HINT)
    return devices[0]


def check_precision(config: JobConfig, device: str) -> None:
    """Refuse bfloat16 on a GPU that has none.

    Raises:
        ConfigError: names the field.
    """
    asked = {"subject.dtype": config.subject.dtype, "training.encode_dtype": config.training.encode_dtype}
    for field, dtype in asked.items():
        if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
            raise ConfigError(f"{field} = bfloat16: this GPU has none", hint=f"Set {field} to float16 or float32.")
