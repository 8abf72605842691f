"""One worker per GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import StateError, StorageError
from tests.small_world import ROOT, World
from worker.supervisor import gpu_lock

HOLD = "import sys; from pathlib import Path; from worker.supervisor import gpu_lock\n"
HOLD += "with gpu_lock.held(['GPU-1', '2'], Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_f29_a_slot_is_held_until_its_process_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for name in ("GPU-1", "2"):
            with pytest.raises(StateError, match=f"GPU {name[-1]} is held by worker of pid {holder.pid}"):
                gpu_lock.held(["0", name], tmp_path).__enter__()
        with gpu_lock.held(["0"], tmp_path):
            pass
        holder.kill()
    with gpu_lock.held(["GPU-1", "2"], tmp_path):
        pass


def test_f29_the_second_worker_of_a_gpu_ends_with_4(world: World, tmp_path: Path) -> None:
    here = {"module": "tests.faults.crashing", "ORCH_GPU": "GPU-1", "TMPDIR": str(tmp_path)}
    first = world.work(**here)
    world.wait(lambda: " on cpu, " in world.said(), 60)
    assert world.work(**here).wait(60) == 4
    assert f"GPU 1 is held by worker of pid {first.pid}" in world.said()
    first.kill()
    first.wait()
    assert world.work("--until-empty", **here).wait(60) == 0, world.said()


def test_a_gpu_has_one_name_however_it_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(gpu_lock.names(device, {"CUDA_VISIBLE_DEVICES": "0"}) == [] for device in ("cpu", "cpu+cpu", "auto"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_lock.names("cuda:1", {"CUDA_VISIBLE_DEVICES": "3,5"}) == ["5"], "nothing tells its UUID"
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = -i ] && echo "GPU-${2#GPU-}"\n')
    tool.chmod(0o755)
    assert gpu_lock.names("cuda:1", {}) == ["GPU-1"]
    assert gpu_lock.names("cuda", {}) == ["GPU-0"]
    assert gpu_lock.names("cuda:0+cuda:1", {"CUDA_VISIBLE_DEVICES": "3,GPU-5"}) == ["GPU-3", "GPU-5"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        gpu_lock.held(["0"], tmp_path / "file").__enter__()
