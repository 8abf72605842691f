"""Which implementation runs where: measured where there is a choice, remembered, and never a reason to stop."""

import functools
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.sae.compiled import autotune
from worker.sae.compiled.autotune import operations
from worker.sae.compiled.autotune_cases import TRIALS, Shape
from worker.sae.compiled.operations import PLAIN, Operations

pytest.importorskip("triton", reason="no Triton here: pip install triton (Linux)")

SHAPE = Shape("cpu", n_tokens=6, d_model=5, n_latents=12, k=3, dtype=torch.float32)
ON_CUDA = SHAPE._replace(device="cuda")


@pytest.fixture(autouse=True)
def _first_warnings() -> Iterator[None]:
    autotune._warned.cache_clear()
    yield
    autotune._warned.cache_clear()


def _timer(*milliseconds: float) -> Callable[[Callable[[], object]], float]:
    answers = iter(milliseconds)
    return lambda _: next(answers)


def _measured(monkeypatch: pytest.MonkeyPatch, *milliseconds: float, part: str = "decode") -> list[str]:
    """Let what would be timed on CUDA take these times on the CPU; return the names as they are measured."""
    asked: list[str] = []

    def measure(trial: Any, shape: Shape, among: Any) -> Any:
        asked.append(shape.device)
        return _measure(trial, SHAPE, among, timer=_timer(*milliseconds))

    monkeypatch.setattr(autotune, "measure", measure)
    monkeypatch.setattr(autotune, "implementations", lambda _: {"torch": PLAIN, "triton": PLAIN})
    return asked


_measure = autotune.measure


def test_a_cpu_runs_plain_torch_and_measures_nothing(tmp_path: Path) -> None:
    assert operations(SHAPE, folder=tmp_path) is PLAIN
    assert not [*tmp_path.iterdir()]


def test_so_does_a_gpu_without_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert operations(ON_CUDA, folder=tmp_path) is PLAIN


@pytest.mark.parametrize("part", list(TRIALS))
def test_every_part_can_be_measured_and_agrees_with_itself(part: str) -> None:
    among = {"torch": PLAIN, "triton": PLAIN}
    found = autotune.measure(TRIALS[part], SHAPE, among, timer=_timer(2.0, 1.0))
    assert found == ("triton", {"torch": 2.0, "triton": 1.0})
    assert autotune.measure(TRIALS[part], SHAPE, among, timer=_timer(1.0, 2.0)).winner == "torch"


def test_every_operation_belongs_to_one_part() -> None:
    fields = [field for trial in TRIALS.values() for field in trial.fields]
    assert sorted(fields) == sorted(Operations._fields)
    kernels = autotune.triton_operations()
    assert autotune.chosen(dict.fromkeys(TRIALS, "triton")) == kernels
    mixed = autotune.chosen({"decode": "triton", "encode": "torch"})
    assert mixed.decode is kernels.decode
    assert mixed.encode is PLAIN.encode
    assert mixed.adam is PLAIN.adam
    narrow = autotune.chosen({"encode": "triton-narrow"})
    assert isinstance(narrow.encode, functools.partial)
    assert narrow.select is kernels.select


def test_a_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _measured(monkeypatch, 2.0, 1.0)
    first = autotune.winner("decode", ON_CUDA, folder=tmp_path / "new")
    assert first.winner == "triton"
    assert autotune.winner("decode", ON_CUDA, folder=tmp_path / "new") == first
    assert asked == ["cuda"]
    (file,) = (tmp_path / "new").iterdir()
    key = json.loads(json.loads(file.read_text())["key"])
    assert key["torch"] == torch.__version__
    assert key["n_latents"] == 12
    assert {"gpu", "triton", "dtype", "part"} <= set(key)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"key": "other", "winner": "triton", "milliseconds": {"triton": 1}}',
        '{"winner": 3}',
        "\x00",
    ],
)
def test_a_file_that_says_nothing_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    _measured(monkeypatch, 1.0, 2.0)
    autotune.winner("decode", ON_CUDA, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    _measured(monkeypatch, 2.0, 1.0)
    assert autotune.winner("decode", ON_CUDA, folder=tmp_path).winner == "triton"
    assert json.loads(file.read_text())["winner"] == "triton"


def test_another_shape_is_another_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _measured(monkeypatch, 2.0, 1.0)
    autotune.winner("decode", ON_CUDA, folder=tmp_path)
    autotune.winner("decode", ON_CUDA._replace(k=4), folder=tmp_path)
    autotune.winner("sample", ON_CUDA, folder=tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(
                autotune._write, path, {"key": "k", "winner": name, "milliseconds": {name: 1.0}, "pad": name * 9999}
            )
            for name in "abcdefgh" * 4
        ]
        read = [autotune._read(path, "k") for _ in range(200)]
    assert [future.result() for future in futures] == [None] * 32
    assert all(one is None or one.winner in "abcdefgh" for one in read)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _measured(monkeypatch, 2.0, 1.0)
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="not remembered"):
        assert autotune.winner("decode", ON_CUDA, folder=tmp_path / "file").winner == "triton"


def _failing(error: Exception) -> Operations:
    def fail(*_: Any) -> Any:
        raise error

    return PLAIN._replace(reconstruction_error=fail)


def test_a_kernel_that_does_not_compile_is_not_chosen_and_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.errors import TritonError

    _measured(monkeypatch, 2.0)
    broken = _failing(TritonError("no such instruction\nmore"))
    monkeypatch.setattr(autotune, "implementations", lambda _: {"torch": PLAIN, "triton": broken})
    with pytest.warns(RuntimeWarning, match="no such instruction") as caught:
        assert autotune.winner("decode", ON_CUDA, folder=tmp_path) == ("torch", {"torch": 2.0, "triton": -1.0})
    assert len(caught) == 1
    assert not [*tmp_path.iterdir()]
    _measured(monkeypatch, 2.0)
    monkeypatch.setattr(autotune, "implementations", lambda _: {"torch": PLAIN, "triton": broken})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autotune.winner("decode", ON_CUDA, folder=tmp_path).winner == "torch"


@pytest.mark.parametrize(("factor", "winner"), [(1.01, "torch"), (torch.nan, "torch"), (1 + 1e-6, "triton")])
def test_a_kernel_that_is_wrong_is_not_chosen(factor: float, winner: str) -> None:
    def almost(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error, squares = PLAIN.reconstruction_error(*given)
        return error * factor, squares

    among = {"torch": PLAIN, "triton": PLAIN._replace(reconstruction_error=almost)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert autotune.measure(TRIALS["decode"], SHAPE, among, timer=_timer(2.0, 1.0)).winner == winner
    assert ["differs" in str(one.message) for one in caught] == [True] * (winner == "torch")


def test_wrong_indices_are_seen_too() -> None:
    def lost(*given: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = PLAIN.encode_top_k(*given, k=k)
        return values, indices * 0 - 1

    among = {"torch": PLAIN, "triton": PLAIN._replace(encode_top_k=lost)}
    with pytest.warns(RuntimeWarning, match="differs"):
        assert autotune.measure(TRIALS["encode"], SHAPE, among, timer=_timer(2.0, 1.0)).winner == "torch"


def test_where_plain_torch_cannot_be_measured_it_runs_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _measured(monkeypatch)
    full = {"torch": _failing(torch.OutOfMemoryError("out of memory")), "triton": PLAIN}
    monkeypatch.setattr(autotune, "implementations", lambda _: full)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert autotune.winner("decode", ON_CUDA, folder=tmp_path).winner == "torch"
    assert not [*tmp_path.iterdir()]
