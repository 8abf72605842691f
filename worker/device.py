"""Which device a trainer computes on."""

import re
import subprocess
import sys

from orchestrator.errors import ConfigError, TrainingError

_PROBE = "import sys, torch; sys.exit(torch.cuda.device_count() <= int(sys.argv[1]))"


def choose(name: str) -> str:
    """Return the device in force for a setting: auto is the GPU where there is one.

    Raises:
        TrainingError: a GPU is asked for and torch sees none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and _index(name) >= torch.cuda.device_count():
        raise TrainingError(f"device {name}: torch sees {torch.cuda.device_count()} GPUs", hint=_HINT)
    return name


def check(name: str) -> None:
    """Refuse a device this machine lacks, before a job is claimed for it. Torch is asked in a process of its own.

    Raises:
        ConfigError: not a device, or not one of this machine.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device {name!r} is none", hint="Devices: auto, cpu, cuda, cuda:N")
    if name.startswith("cuda") and subprocess.run([sys.executable, "-c", _PROBE, str(_index(name))]).returncode:
        raise ConfigError(f"device {name}: torch sees no such GPU on this machine", hint=_HINT)


def _index(name: str) -> int:
    return int(name.partition(":")[2] or 0)


_HINT = "Use --device cpu, or install a torch build for this GPU (see https://pytorch.org/get-started)"
