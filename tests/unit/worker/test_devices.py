"""Names of devices, and which GPUs a trainer sees."""

import time

import pytest
import torch

from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from worker.accelerator import check_precision, choose, fast_dtype
from worker.devices import check, count_gpus, expand, gpu_environ, trainer_devices


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("0", ["cuda:0"]),
        ("0,1", ["cuda:0", "cuda:1"]),
        ("cuda:3, 1", ["cuda:3", "cuda:1"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("0+1,2", ["cuda:0+cuda:1", "cuda:2"]),
        ("cpu+cpu", ["cpu+cpu"]),
        ("0,cpu", ["cuda:0", "cpu"]),
    ],
)
def test_words_name_devices(words: str, names: list[str]) -> None:
    assert expand(words) == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("x", "'x' is no device"),
        ("", "'' is no device"),
        ("0,", "'' is no device"),
        ("-1", "'-1' is no device"),
        ("0,0", "0 is there twice"),
        ("0+1,1", "1 is there twice"),
        ("0,cuda:0", "0 is there twice"),
        ("0+cpu", "not both"),
    ],
)
def test_wrong_words_are_usage_errors(words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        expand(words)
    assert caught.value.exit_code == 2
    assert "0+1" in caught.value.hint


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu+cuda:0", "cuda:0+cuda:0", "cuda+cuda", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a device"):
        check(name)


def test_a_gpu_beyond_the_last_is_refused() -> None:
    n_gpus = count_gpus()
    with pytest.raises(ConfigError, match=f"cuda:{n_gpus}: torch sees no such GPU"):
        check("cpu", "cpu+cpu", f"cuda:{n_gpus}")
    check("auto", "cpu", "cpu+cpu", *(f"cuda:{index}" for index in range(n_gpus)))


def test_a_trainer_sees_its_own_gpus_alone() -> None:
    assert gpu_environ("cuda:2", {}) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert gpu_environ("cuda:1+cuda:3", {}) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    # What a scheduler has chosen for us is counted from 0, whatever it is called.
    assert gpu_environ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    for name in ("auto", "cpu", "cpu+cpu", "cuda"):
        assert gpu_environ(name, {"CUDA_VISIBLE_DEVICES": "5"}) == {}


def test_a_trainer_without_a_gpu_takes_the_cpu() -> None:
    assert trainer_devices("cpu+cpu") == ["cpu", "cpu"]
    assert trainer_devices("cuda:2+cuda:5") == ["cuda:0", "cuda:1"]
    assert trainer_devices("cuda:3") == ["cuda:0"]
    assert trainer_devices("cuda") == ["cuda"]
    assert choose("cpu+cpu") == choose("cpu") == "cpu"


def test_a_gpu_without_bfloat16_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    half = parse({"training": {"encode_dtype": "bfloat16"}})
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    check_precision(half, "cpu")
    check_precision(parse({}), "cuda:0")
    with pytest.raises(ConfigError, match=r"training\.encode_dtype = bfloat16: this GPU has none"):
        check_precision(half, "cuda:0")


def test_a_gpu_without_float8_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = parse({"training": {"encode_dtype": "float8_e4m3"}})
    check_precision(scaled, "cpu")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 9))
    check_precision(scaled, "cuda:0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match=r"training\.encode_dtype = float8_e4m3: this GPU has none"):
        check_precision(scaled, "cuda:0")


def test_bfloat16_is_chosen_where_its_products_are_faster() -> None:
    def seconds(dtype: torch.dtype) -> float:
        x = torch.rand(1024, 512).to(dtype)
        began = time.process_time()
        for _ in range(8):
            torch.mm(x, x.T)
        return time.process_time() - began

    gain = min(seconds(torch.float32) for _ in range(5)) / min(seconds(torch.bfloat16) for _ in range(5))
    n_threads = torch.get_num_threads()
    assert fast_dtype("cpu") in (["float32"] if gain < 1.2 else ["bfloat16"] if gain > 1.9 else ["float32", "bfloat16"])
    assert torch.get_num_threads() == n_threads
