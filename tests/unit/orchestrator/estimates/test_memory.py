"""What a trainer is predicted to need, by hand and against a real one; and what there is."""

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from orchestrator.estimates import memory
from orchestrator.estimates.memory import SAMPLE_TOKENS, Room, state_bytes, trainer_bytes
from orchestrator.settings import Settings
from worker.protocol import Assignment, Order, Started
from worker.supervisor.trainer_process import TrainerProcess

D = 128
"""Width of the model that ships here."""


def config(n_latents: int = 1024, **parts: dict[str, Any]) -> JobConfig:
    return parse({"sae": {"n_latents": n_latents, "k": 4}} | parts)


def test_the_state_of_a_job_by_hand() -> None:
    assert state_bytes(config(1024)) == 5 * 4 * (2 * 1024 * D + 1024 + D)


def test_each_further_job_costs_its_state_and_no_more() -> None:
    one, big = config(1024), config(8192)
    assert trainer_bytes([one] * 5) - trainer_bytes([one] * 4) == state_bytes(one)
    assert trainer_bytes([big, one]) - trainer_bytes([big]) == state_bytes(one), "they step one after another"


def test_small_jobs_measure_side_by_side_up_to_eight() -> None:
    one = config(1024, training={"batch_tokens": 256})
    sample, measuring = 4 * SAMPLE_TOKENS * D * 4, 2048 * (3 * 1024 + 3 * D) * 4 + state_bytes(one) // 5
    assert trainer_bytes([one] * 8) - trainer_bytes([one] * 7) == state_bytes(one) + max(sample, measuring)
    assert trainer_bytes([one] * 10) - trainer_bytes([one] * 9) == state_bytes(one)


def test_another_hook_point_costs_a_window_too() -> None:
    one, other = config(), config(subject={"layer": 1})
    window, heldout = 65_536 * D * 4, 16_384 * D * 4
    assert trainer_bytes([one, other]) - trainer_bytes([one, one]) == window + heldout
    scaled = config(sae={"n_latents": 1024, "k": 4, "normalize": "none"})
    assert trainer_bytes([one, scaled]) - trainer_bytes([one, one]) == heldout, "the window is kept as it was read"


def test_several_layers_cost_a_window_and_a_part_of_every_step_each() -> None:
    one, two = config(), config(subject={"layers": [1, 4]})
    vectors = 16_384 * D * 4
    window, step = 65_536 * D * 4, 2048 * (1024 + 4 * D) * 4
    assert trainer_bytes([two]) - trainer_bytes([one]) >= window + vectors
    assert trainer_bytes([two]) - trainer_bytes([one]) <= window + vectors + step + 3 * vectors
    alone = config(subject={"layer": 4})
    assert trainer_bytes([two, alone]) - trainer_bytes([two]) == vectors + state_bytes(alone), "its window is there"
    assert trainer_bytes([config(subject={"layers": "all"})]) > trainer_bytes([config(subject={"layers": [0, 1, 2]})])


def test_a_lens_costs_a_map_for_each_block_once_and_a_heldout_set_of_its_space() -> None:
    one, lens = config(), {"n_latents": 1024, "k": 4, "lens": "a" * 64}
    through = config(sae=lens)
    maps, heldout = 6 * (D * D + D) * 4, 16_384 * D * 4
    assert trainer_bytes([through]) - trainer_bytes([one]) == maps
    assert trainer_bytes([through, through]) - trainer_bytes([through]) == state_bytes(one), "one lens serves both"
    assert trainer_bytes([one, through]) - trainer_bytes([one, one]) == maps + heldout
    other = config(sae=lens | {"lens": "b" * 64})
    assert trainer_bytes([through, other]) - trainer_bytes([through, through]) == maps + heldout


def test_an_unknown_model_counts_as_a_large_one() -> None:
    unknown = config(subject={"model": "somebody/unheard-of"})
    assert trainer_bytes([unknown]) > 32 << 30
    assert not Room(Settings(memory="24GiB"), "cpu").holds([unknown, unknown])
    assert Room(Settings(memory="24GiB"), "cpu").holds([unknown]), "one alone always may try"


def test_a_model_in_the_hubs_cache_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "models--somebody--small" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    (copy / "config.json").write_text('{"hidden_size": 64, "torch_dtype": "bfloat16"}')
    (copy / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    known = config(subject={"model": "somebody/small"})
    assert state_bytes(known) == 5 * 4 * (2 * 1024 * 64 + 1024 + 64)
    monkeypatch.setattr(memory, "PROGRAM_BYTES", {"cpu": 0})
    half = trainer_bytes([known]) - trainer_bytes([config(subject={"model": "somebody/small", "dtype": "bfloat16"})])
    assert half == 1000 + 65_536 * 64 * 2, "weights and window in half the precision"


def test_a_copy_whose_weights_are_gone_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "models--somebody--small" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    (copy / "config.json").write_text('{"hidden_size": 64}')
    (copy / "model.safetensors").symlink_to("../../blobs/gone")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert trainer_bytes([config(subject={"model": "somebody/small"})]) > 32 << 30


def test_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    one = config()
    enough = trainer_bytes([one] * 3)
    room = Room(Settings(memory=str(enough)), "cpu")
    assert room.holds([one] * 3)
    assert not room.holds([one] * 4)
    assert room.fits(one) == 3
    assert Room(Settings(memory="1TB", jobs_per_trainer=5), "cpu").fits(one) == 5
    assert Room(Settings(memory="1MB"), "cpu").fits(one) == 1


def test_a_worker_of_some_cores_has_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_in_memory", lambda: 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [Room(Settings(), "cpu", threads=n).bytes for n in (1, 2, 4, 8)] == [225, 450, 900, 900]
    assert Room(Settings(), "cpu").bytes == 900


def test_a_gpu_that_says_nothing_is_shared_by_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    room = Room(Settings(), "cuda:0")
    assert room.bytes is None
    assert [room.holds([config()] * n) for n in (1, 2, 3)] == [True, True, False]


def test_a_gpu_is_asked_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$2" in 0) echo 1000;; 1) echo 2000;; GPU-x) echo 3000;; *) exit 6;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Room(Settings(), "cuda:1").bytes == int(0.9 * (2000 << 20))
    assert Room(Settings(), "auto").kind == "cuda"
    assert Room(Settings(), "cpu").kind == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-x")
    assert Room(Settings(), "cuda:0").bytes == int(0.9 * (2000 << 20))
    assert Room(Settings(), "cuda:1").bytes == int(0.9 * (3000 << 20))
    assert Room(Settings(), "cuda:2").bytes is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Room(Settings(), "auto").kind == "cpu", "all are hidden"


@pytest.mark.parametrize("text", ["much", "-1", "0", "1 parsec"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="6GiB"):
        Settings(memory=text)


def test_a_real_trainer_stays_near_what_was_predicted(tmp_path: Path) -> None:
    """Four SAEs whose state and tile outweigh torch itself: the peak is within a third of the prediction."""
    training = {
        "batch_tokens": 4096, "shuffle_tokens": 32_768, "heldout_tokens": 2048, "max_tokens": 3 * 4096,
        "first_point_tokens": 4096,
    }  # fmt: skip
    configs = [
        config(16_384, training=training | {"seed": seed}, data={"max_tokens": 100_000}, stop={"rule": "max_tokens"})
        for seed in range(4)
    ]
    jobs = tuple(Assignment(i, 1, one, str(tmp_path / str(i)), ()) for i, one in enumerate(configs))
    order = Order(jobs, str(tmp_path / "tokens"), str(tmp_path / "compile"), "cpu", 1, 1e9, os.getpid())
    child = TrainerProcess(order, log=tmp_path / "log")
    peak, started = 0, 0
    while not child.ended:
        said = child.next(0.02)
        peak = max(peak, _peak(child.pid))
        started += said is not None and isinstance(said.message, Started)
    assert child.close() == 0, (tmp_path / "log").read_text()
    assert started == 4
    predicted = trainer_bytes(configs)
    assert peak / 1.33 < predicted < peak * 1.33, (peak >> 20, predicted >> 20)


def _peak(pid: int) -> int:
    """Return the most memory a process has had; 0 when it is gone."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize("names", memory._GROUP_FILES)
def test_a_container_has_no_more_than_its_control_group_leaves(tmp_path: Path, names: tuple[str, str]) -> None:
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    whole = memory.free_in_memory(tmp_path)
    limit.write_text("5000\n")
    used.write_text("2000\n")
    assert memory.free_in_memory(tmp_path) == 3000
    used.write_text("6000\n")
    assert memory.free_in_memory(tmp_path) == 0
    limit.write_text("max\n")
    assert memory.free_in_memory(tmp_path) == pytest.approx(whole, rel=0.5)
