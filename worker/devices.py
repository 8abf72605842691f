"""Which devices a worker is for: words into names, names checked against the machine, what of it a trainer sees.

A name is auto, cpu, cuda, cuda:N, or several devices that share each job, joined by +: cuda:0+cuda:1, cpu+cpu.
"""

import re
import subprocess
import sys
from collections.abc import Mapping

from orchestrator.errors import ConfigError

_COUNT = "import torch; print(torch.cuda.device_count())"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def seen(name: str) -> list[str]:
    """Return the devices of a name as the trainer counts them: its own GPUs alone, from 0 on."""
    parts = name.split("+")
    return [f"cuda:{number}" if ":" in part else part for number, part in enumerate(parts)]


def visible(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what in its environment lets a trainer see its own GPUs alone: it counts them from 0."""
    chosen = [int(part.partition(":")[2]) for part in name.split("+") if ":" in part]
    if not chosen:
        return {}
    # An index counts what we ourselves may see, which may be named by UUID.
    ours = [word.strip() for word in environ.get(_VISIBLE, "").split(",") if word.strip()]
    return {_VISIBLE: ",".join(ours[index] if index < len(ours) else str(index) for index in chosen)}


def check(*names: str) -> None:
    """Refuse devices this machine lacks, before a job is claimed for them. Torch is asked in a process of its own.

    Raises:
        ConfigError: not a device, or not one of this machine.
    """
    wanted: dict[int, str] = {}
    for name in names:
        parts = name.split("+")
        if len(parts) == 1 and re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            wanted |= {_index(name): name} if name.startswith("cuda") else {}
        elif all(part == "cpu" for part in parts):
            continue
        elif all(re.fullmatch(r"cuda:\d+", part) for part in parts) and len({*map(_index, parts)}) == len(parts):
            wanted |= {_index(part): part for part in parts}
        else:
            raise ConfigError(
                f"device {name!r} is none", hint="Devices: auto, cpu, cuda, cuda:N, or some that share each job: 0+1"
            )
    if wanted and (lacking := [index for index in sorted(wanted) if index >= count_gpus()]):
        raise ConfigError(f"device {wanted[lacking[0]]}: torch sees no such GPU on this machine", hint=NO_GPU_HINT)


def expand(words: str) -> list[str]:
    """Return the device of each worker that --devices asks for: `0,2+3` gives cuda:0 and cuda:2+cuda:3.

    Raises:
        ConfigError: a word that is none, or a GPU twice.
    """
    if words.strip() == "all":
        n_gpus = count_gpus()
        if not n_gpus:
            raise ConfigError("--devices all: torch sees no GPU on this machine", hint=NO_GPU_HINT)
        return [f"cuda:{index}" for index in range(n_gpus)]
    names = ["+".join(_named(part, words) for part in word.split("+")) for word in words.split(",")]
    for name in names:
        if len({part.partition(":")[0] for part in name.split("+")}) > 1:
            raise ConfigError(f"--devices {words}: a job is shared by GPUs or by CPU processes, not both", hint=_WORDS)
    gpus = [part for name in names for part in name.split("+") if part != "cpu"]
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise ConfigError(f"--devices {words}: {gpu.removeprefix('cuda:')} is there twice", hint=_WORDS)
    return names


def count_gpus() -> int:
    """Return how many GPUs torch sees here, asked in a process of its own; 0 where torch does not load."""
    asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0


def _named(word: str, words: str) -> str:
    found = re.fullmatch(r"(?:cuda:)?(\d+)|cpu", word.strip())
    if not found:
        raise ConfigError(f"--devices {words}: {word.strip()!r} is no device", hint=_WORDS)
    return f"cuda:{int(found[1])}" if found[1] else "cpu"


def _index(name: str) -> int:
    return int(name.partition(":")[2] or 0)


NO_GPU_HINT = "Use --device cpu, or install a torch build for this GPU (see https://pytorch.org/get-started)"
_WORDS = "One worker per entry: 0,1 for two GPUs, 0+1 for one worker whose jobs share both, cpu,cpu, or all GPUs: all"
