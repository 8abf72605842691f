"""How many CPU cores a worker may keep busy: its part of those it is bound to, of its quota, and of the machine."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_OWN, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def usable_cores(own: Path = _OWN, root: Path = _ROOT) -> int:
    """Return the cores that this process may keep busy: a quota of 2.5 cores counts as 2, one below 1 as 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(int, _quotas(own, root))]))


def part_of_cores(*, on_host: int, on_machine: int) -> int:
    """Return the cores for one worker of so many that share this host (a container is one), and so many its machine."""
    machine = os.cpu_count() or 1
    return max(1, min(usable_cores() // max(1, on_host), machine // max(1, on_machine)))


def machine_id() -> str | None:
    """Return what the containers of one machine have in common, until it starts anew; None where nothing tells."""
    return next(iter(_lines(_BOOT)), None)


def _quotas(own: Path, root: Path) -> Iterator[float]:
    """Yield the cores that each control group around this process may use, version 2 or 1, where it has a quota."""
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Within a container the name may be that of the host: then only the root itself is there.
        places = [group, *map(str, PurePosixPath(group).parents)]
        for base in (root, root / "cpu", root / "cpu,cpuacct"):
            for place in places:
                yield from _quota(base / place.lstrip("/"))


def _quota(folder: Path) -> Iterator[float]:
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    with suppress(ValueError, ZeroDivisionError):
        quota, period = map(int, words)  # "max", and none at all, are no numbers
        if quota > 0:
            yield quota / period


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
