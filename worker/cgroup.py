"""What the kernel says of this process's control group: how often the OOM killer took somebody in it."""

from pathlib import Path

_OWN, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def oom_kills(own: Path = _OWN, root: Path = _ROOT) -> int:
    """Return how many processes of our control group, v1 or v2, were killed for memory; 0 where nothing tells."""
    for file in _counters(own, root):
        found = dict(line.split(" ", 1) for line in _read(file).splitlines() if " " in line).get("oom_kill", "")
        if found.strip().isdecimal():
            return int(found)
    return 0


def _counters(own: Path, root: Path) -> list[Path]:
    """Return where the counter may be: in the group we know by name, or, seen from a container, in the root."""
    files = []
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if "memory" in controllers.split(","):
            files += [root / "memory" / part / "memory.oom_control" for part in (group.lstrip("/"), "")]
        elif not controllers:
            files += [root / part / "memory.events" for part in (group.lstrip("/"), "")]
    return files


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
