"""The count of cores: what this process is bound to, and the quota of its control group."""

import os
from pathlib import Path

import pytest

from orchestrator.cores import usable_cores

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
