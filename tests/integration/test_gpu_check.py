"""The check of a GPU, rehearsed on a CPU: each part gives its figures, and one that fails is told and passed over."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def check(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--out", str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text())
    return done.stdout, found


def test_every_part_runs(tmp_path: Path) -> None:
    said, found = check(tmp_path, "--only", "warm0,step0,ceilings,decoder,float8,peers")
    assert found["warm0"]["failed"] is None
    assert min(found["step0"]["ms"]["step"], found["step0"]["ms"]["product"]) > 0
    assert found["step0"]["ms"]["step, 10% dead"] > 0
    assert found["step0"]["ms"]["plain torch"] > 0
    assert "No module named 'sparsify'" in found["peers"]["said"] or found["peers"]["n 128"]["sparsify"] > 0
    assert found["ceilings"]["device"] == "cpu"
    assert found["decoder"]["decode, k 4"]["torch"] > 0
    assert found["float8"]["n 128"]["latents off"] < 0.05, "of twice 4 candidates, on noise"
    assert min(found["float8"]["n 128"]["ms"].values()) > 0
    assert found["float8"]["n 128"]["said"] == []
    assert "| 16 | 128 | 4 | 64 |" in said
    assert "| 16 | 128 | 4 | 64 |" in (tmp_path / "gpu_check.md").read_text()


def test_a_job_is_killed_and_resumed(tmp_path: Path) -> None:
    _, found = check(tmp_path, "--only", "job")
    assert "error" not in found["job"], found["job"]
    assert found["job"]["killed = whole"] is True
    assert found["job"]["killed"]["attempts"][0][0] == "lost"


def test_a_part_that_does_not_end_is_told(tmp_path: Path) -> None:
    said, found = check(tmp_path, "--only", "step0", "--seconds", "0.5")
    assert found["step0"]["error"] == "exit status -9"
    assert "step0: " in said
