"""Names of devices: parse --devices, check names against the machine, and let a trainer see its own GPUs alone.

A name is auto, cpu, cuda, cuda:N, or several devices that share each job, joined by +: cuda:0+cuda:1, cpu+cpu.
"""

import re
import subprocess
import sys
from collections.abc import Mapping

from orchestrator.errors import ConfigError

_COUNT = "import torch; print(torch.cuda.device_count())"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_GPU_HINT = "Use --device cpu, or install a torch build for this GPU (see https://pytorch.org/get-started)"
_SYNTAX = "One worker per entry: 0,1 for two GPUs, 0+1 for one worker whose jobs share both, cpu,cpu, or all GPUs: all"


def trainer_devices(name: str) -> list[str]:
    """Return the devices of a name as its trainer numbers them: it sees its own GPUs alone, from 0 on."""
    parts = name.split("+")
    return [f"cuda:{number}" if ":" in part else part for number, part in enumerate(parts)]


def gpu_environ(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variable that lets the trainer of a device see its own GPUs alone; empty for no GPU."""
    chosen = [int(part.partition(":")[2]) for part in name.split("+") if ":" in part]
    if not chosen:
        return {}
    # An index counts the GPUs that this process sees, which may be named by UUID.
    ours = [entry.strip() for entry in environ.get(_VISIBLE, "").split(",") if entry.strip()]
    return {_VISIBLE: ",".join(ours[index] if index < len(ours) else str(index) for index in chosen)}


def check(*names: str) -> None:
    """Refuse devices this machine lacks, before a job is claimed for them. Torch is asked in a process of its own.

    Raises:
        ConfigError: not a device, or not one of this machine.
    """
    part_of_index = {_index(part): part for name in names for part in _checked_parts(name) if part.startswith("cuda")}
    if not part_of_index:
        return
    n_gpus = count_gpus()
    for index, part in sorted(part_of_index.items()):
        if index >= n_gpus:
            raise ConfigError(f"device {part}: torch sees no such GPU on this machine", hint=NO_GPU_HINT)


def _checked_parts(name: str) -> list[str]:
    parts = name.split("+")
    is_one = len(parts) == 1 and re.fullmatch(r"auto|cpu|cuda(:\d+)?", name)
    are_cpus = all(part == "cpu" for part in parts)
    are_gpus = all(re.fullmatch(r"cuda:\d+", part) for part in parts) and len({*map(_index, parts)}) == len(parts)
    if not (is_one or are_cpus or are_gpus):
        raise ConfigError(
            f"{name!r} is not a device", hint="Devices: auto, cpu, cuda, cuda:N, or some that share each job: 0+1"
        )
    return parts


def expand(devices: str) -> list[str]:
    """Return the device of each worker that --devices asks for: `0,2+3` gives cuda:0 and cuda:2+cuda:3.

    Raises:
        ConfigError: an entry that is no device, or a GPU twice.
    """
    if devices.strip() == "all":
        n_gpus = count_gpus()
        if not n_gpus:
            raise ConfigError("--devices all: torch sees no GPU on this machine", hint=NO_GPU_HINT)
        return [f"cuda:{index}" for index in range(n_gpus)]
    names = ["+".join(_parse(part, devices) for part in entry.split("+")) for entry in devices.split(",")]
    for name in names:
        if len({part.partition(":")[0] for part in name.split("+")}) > 1:
            raise ConfigError(
                f"--devices {devices}: a job is shared by GPUs or by CPU processes, not both", hint=_SYNTAX
            )
    gpus = [part for name in names for part in name.split("+") if part != "cpu"]
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise ConfigError(f"--devices {devices}: {gpu.removeprefix('cuda:')} is there twice", hint=_SYNTAX)
    return names


def count_gpus() -> int:
    """Return how many GPUs torch sees here, asked in a process of its own; 0 where torch does not load."""
    asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0


def _parse(part: str, devices: str) -> str:
    found = re.fullmatch(r"(?:cuda:)?(\d+)|cpu", part.strip())
    if not found:
        raise ConfigError(f"--devices {devices}: {part.strip()!r} is no device", hint=_SYNTAX)
    return f"cuda:{int(found[1])}" if found[1] else "cpu"


def _index(name: str) -> int:
    return int(name.partition(":")[2] or 0)
