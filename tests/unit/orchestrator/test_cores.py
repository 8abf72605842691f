"""The count of cores: what this process is bound to, and the quota of its control group."""

import os
from pathlib import Path

import pytest

from orchestrator import cores as counted
from orchestrator.cores import machine_id, part_of_cores, usable_cores

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group(tmp_path: Path, own: str, files: dict[str, str]) -> int:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return usable_cores(tmp_path / "own", tmp_path / "root")


@pytest.mark.skipif(BOUND < 2, reason="one core has no quota below it")
@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, BOUND),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, BOUND),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/of/the/host\n", {"cpu.max": "100000 100000\n"}, 1),
        ("2:cpu,cpuacct:/a\n", {f"cpu,cpuacct/a/cpu.cfs_{kind}_us": "50000\n" for kind in ("quota", "period")}, 1),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, BOUND),
        ("4:memory:/a\n", {"a/cpu.max": "100000 100000\n"}, BOUND),
        ("0::/\n", {}, BOUND),
        ("0::/\n", {"cpu.max": "what\n"}, BOUND),
    ],
)  # fmt: skip
def test_a_quota_counts(tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
    assert _group(tmp_path, own, files) == cores


def test_of_what_is_not_known_there_is_no_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == BOUND


@pytest.mark.parametrize(
    ("usable", "machine", "on_host", "on_machine", "part"),
    [
        (16, 16, 1, 1, 16),
        (16, 16, 4, 4, 4),
        (2, 2, 1, 2, 1),  # two containers of one machine
        (4, 16, 1, 4, 4),  # each with a quota of its own
        (4, 16, 2, 8, 2),
        (1, 2, 1, 2, 1),
        (2, 2, 3, 3, 1),
        (8, 8, 0, 0, 8),  # before its first report
    ],
)
def test_workers_share_what_their_host_may_use_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, usable: int, machine: int, on_host: int, on_machine: int, part: int
) -> None:
    monkeypatch.setattr(counted, "usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert part_of_cores(on_host=on_host, on_machine=on_machine) == part


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the kernel tells on Linux alone")
def test_a_machine_is_one_and_the_same_whatever_its_hosts_are_called() -> None:
    assert machine_id()
    assert machine_id() == machine_id()
