"""Choose the device and the precision that a trainer computes in; check that the device has what a config asks for."""

import time
from functools import cache

import torch

from orchestrator.config.job import Dtype, JobConfig
from orchestrator.errors import ConfigError, MachineError
from orchestrator.formatting import named
from worker.devices import NO_GPU_HINT, trainer_devices

FLOAT8_CAPABILITY = (8, 9)
"""The compute capability that multiplies float8 numbers."""
_WORTH = 1.5
"""By so much bfloat16 products must be faster: the rest of a forward pass gains nothing by it."""


def choose(name: str) -> str:
    """Return the device that a trainer computes on, the first one of several; auto is the GPU where there is one.

    Raises:
        MachineError: a GPU is asked for and torch sees none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    devices = trainer_devices(name)
    if devices[0] != "cpu" and len(devices) > torch.cuda.device_count():
        raise MachineError(f"device {name}: torch sees {named(torch.cuda.device_count(), 'GPU')}", hint=NO_GPU_HINT)
    return devices[0]


@cache
def fast_dtype(kind: str) -> Dtype:
    """Return what `subject.dtype: auto` is on a kind of device, cpu or cuda: bfloat16 where its products are faster.

    On a CPU both are measured, for its flags do not tell: with AMX bfloat16 is 3 to 4 times as fast as float32, with
    AVX512_BF16 alone twice as fast on some CPUs and half as fast on others. Time of one thread is counted, and the
    least: what else the machine does changes nothing.
    """
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        took = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    finally:
        torch.set_num_threads(n_threads)
    return "bfloat16" if took[torch.float32] > _WORTH * took[torch.bfloat16] else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Return what a product of the size of a small model's takes: (512, 768) x (768, 768)."""
    x, weight = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(5):
        began = time.thread_time()
        torch.mm(x, weight)
        times.append(time.thread_time() - began)
    return min(times)


def check_precision(config: JobConfig, device: str) -> None:
    """Refuse bfloat16, or float8, on a GPU that has none.

    Raises:
        ConfigError: names the field.
    """
    is_scaled = config.training.encode_dtype == "float8_e4m3"
    if is_scaled and device.startswith("cuda") and torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        raise ConfigError(
            "training.encode_dtype = float8_e4m3: this GPU has none", hint="Set training.encode_dtype to bfloat16."
        )
    asked = {"subject.dtype": config.subject.dtype, "training.encode_dtype": config.training.encode_dtype}
    for field, dtype in asked.items():
        if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
            raise ConfigError(f"{field} = bfloat16: this GPU has none", hint=f"Set {field} to float16 or float32.")
