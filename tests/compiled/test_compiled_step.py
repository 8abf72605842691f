"""The whole step as one compiled graph of fixed shapes, against the step as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WALK = Path(__file__).with_name("walk.py")
ROOT = Path(__file__).parents[2]


def _walk(folder: Path, *walks: str, **environment: str) -> list[dict[str, Any]]:
    """Walk in one process, which imports torch once: each walk finds the kernels of those before it in the folder."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no processes that compile for this one: each would import torch
    done = subprocess.run(
        [sys.executable, str(WALK), *walks],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "PYTHONPATH": path, **alone, **environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(walks) :]]


LAYERS = (1, 3)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the walks compile into."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def compiled(kernels: Path) -> dict[int, dict[str, Any]]:
    """What training with the compiled step came to, by the number of layers."""
    found = _walk(kernels, *(json.dumps({"n_layers": n_layers}) for n_layers in LAYERS))
    return dict(zip(LAYERS, found, strict=True))


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the many jobs came to, whose graphs need no compiler, and then a training without one."""
    return _walk(tmp_path_factory.mktemp("uncompiled"), "many", "{}", CXX="no-such-compiler")


@pytest.mark.skipif(" " in torch.__path__[0], reason="torch gives its own folder to the linker without quotes")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("n_layers", LAYERS)
def test_the_compiled_step_is_the_step(compiled: dict[int, dict[str, Any]], kernels: Path, n_layers: int) -> None:
    """fullgraph: a graph break would have been an error; AuxK joins in while it runs."""
    check_step(compiled[n_layers])
    assert any(kernels.rglob("*.so")), "the next job finds the graph in the folder"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("n_dead", "rooms"), [(30, [0, 64]), (80, [0, 97])])
@pytest.mark.parametrize(("encode_dtype", "n_layers"), [("float32", 1), ("bfloat16", 1), ("float32", 3)])
def test_replayed_as_cuda_graphs_the_compiled_step_is_the_step(
    tmp_path: Path, encode_dtype: str, n_layers: int, n_dead: int, rooms: list[int]
) -> None:
    """With room for few dead latents and for all of them."""
    given = {"device": "cuda", "encode_dtype": encode_dtype, "n_dead": n_dead, "n_layers": n_layers}
    (found,) = _walk(tmp_path, json.dumps(given))
    check_step(found, apart=1e-3)
    assert found["replayed"] == rooms


def check_step(found: dict[str, Any], *, apart: float = 1e-5) -> None:
    assert found["failed"] is None
    assert found["said"] == []
    assert found["resumed_is_the_same"]
    assert found["untouched"], "a rehearsal leaves the trainee as it is"
    assert found["aux_loss"] > 0
    assert found["tokens_seen"][0] == found["tokens_seen"][1]
    assert found["aux_tokens"][0] >= found["aux_tokens"][1] > 0
    assert found["apart"]["tokens_since_fired"] == 0
    assert all(gap < apart for name, gap in found["apart"].items() if name != "sums"), found["apart"]
    assert found["apart"]["sums"] < 100 * apart


def test_every_job_of_a_trainer_has_its_own_two_graphs(uncompiled: list[dict[str, Any]]) -> None:
    assert uncompiled[0]["failed"] == [None] * 6


def test_without_a_compiler_training_goes_on_and_says_so_once(uncompiled: list[dict[str, Any]]) -> None:
    found = uncompiled[1]
    assert "torch.compile failed, training goes on without it" in found["said"][0]
    assert len(found["said"]) == 1
    assert found["failed"] in found["said"][0]
    assert all(gap == 0 for gap in found["apart"].values())
