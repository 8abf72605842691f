"""The Triton kernels on the device: the comparisons of the interpreter, in float32 and bfloat16, at real sizes too."""

from pathlib import Path

import pytest
import torch

from tests import kernel_checks as checks
from tests.kernel_checks import Size
from worker.sae.compiled import autotune
from worker.sae.compiled.autotune_cases import TRIALS, Shape
from worker.sae.compiled.operations import PLAIN, Operations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = [Size(1, 1, 1, 1), Size(5, 11, 3, 4), Size(7, 20, 77, 20), Size(257, 1000, 769, 32), Size(1024, 4096, 768, 32)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, Size(128, 4096, 768, 384), Size(16, 4096, 2304, 2048)])
def test_decode_and_sampled_product(size: Size, dtype: torch.dtype) -> None:
    checks.check_bags(size, device="cuda", dtype=dtype)


@pytest.mark.parametrize("size", [*SIZES, Size(128, 2048, 768, 384), Size(64, 512, 4096, 16), Size(64, 512, 5000, 16)])
def test_every_gradient(size: Size) -> None:
    checks.check_gradients(size, device="cuda")


@pytest.mark.parametrize("n_tokens", [64, 65, 300, 20_000])
def test_latents_that_fire_on_every_token(n_tokens: int) -> None:
    checks.check_popular(device="cuda", n_tokens=n_tokens)


@pytest.mark.parametrize("way", ["wide", "narrow", "library"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size",
    [
        *SIZES,
        Size(100, 300, 64, 300),
        Size(2048, 16_384, 768, 32),
        Size(512, 16_384, 768, 192),
        Size(64, 200_000, 64, 8),
    ],
)
def test_encode_and_selection(size: Size, dtype: torch.dtype, way: str) -> None:
    checks.check_encode(size, device="cuda", dtype=dtype, way=way)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 5, 100, 200])
def test_selection_of_ties_and_of_what_is_not_finite(k: int, dtype: torch.dtype) -> None:
    checks.check_select(checks.awkward_values("cuda").to(dtype), k)


@pytest.mark.parametrize("size", [Size(1, 1, 1, 1), Size(5, 1100, 1, 4), Size(16_384, 4096, 1, 32)])
def test_tokens_since_fired(size: Size) -> None:
    checks.check_tokens_since_fired(size, device="cuda")


@pytest.mark.parametrize(
    ("shape", "sphere"),
    [((7, 33), True), ((3, 2051), True), ((4096, 768), True), ((9, 8192), True), ((1,), False), ((4096, 769), False)],
)
def test_adam(shape: tuple[int, ...], sphere: bool) -> None:
    checks.check_adam(shape, sphere=sphere, device="cuda")


def _step(operations: Operations, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    acts, indices = operations.encode_top_k(x, W, b, k=4)
    error, squares = operations.reconstruction_error(x, acts.relu(), indices, W, x[0])
    return squares, *operations.latent_gradients(acts.relu(), indices, error, x, W)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_traced_and_replayed_as_a_graph_it_is_the_same() -> None:
    given = (
        checks.drawn(64, 96, device="cuda"),
        checks.drawn(500, 96, device="cuda"),
        checks.drawn(500, device="cuda"),
    )
    ours = autotune.triton_operations()
    wanted = _step(ours, *given)
    traced = torch.compile(_step, fullgraph=True, dynamic=False)(ours, *given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(ours, *given)
    graph.replay()
    for one, other, third in zip(wanted, traced, captured, strict=True):
        torch.testing.assert_close(other, one)
        assert torch.equal(third, one)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_kernel_makes_the_host_wait() -> None:
    given = (
        checks.drawn(64, 96, device="cuda"),
        checks.drawn(500, 96, device="cuda"),
        checks.drawn(500, device="cuda"),
    )
    ours = autotune.triton_operations()
    _step(ours, *given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(ours, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_choice_is_made_and_remembered(tmp_path: Path) -> None:
    shape = Shape("cuda", n_tokens=512, d_model=256, n_latents=4096, k=16, dtype=torch.bfloat16)
    first = {part: autotune.winner(part, shape, folder=tmp_path) for part in TRIALS}
    # None failed or disagreed with plain torch.
    assert all(ms > 0 for one in first.values() for ms in one.milliseconds.values()), first
    assert {part: autotune.winner(part, shape, folder=tmp_path) for part in TRIALS} == first
    assert autotune.operations(shape, folder=tmp_path)._fields == PLAIN._fields
