"""The Triton kernels in Triton's interpreter, on the CPU: values, indices and every gradient.

Its name keeps pytest from it: `test_kernels.py` runs it, in a process that has TRITON_INTERPRET=1 from its start.
"""

from typing import Any

import pytest
import torch

from tests import kernel_checks as checks
from tests.kernel_checks import Size
from worker.sae.compiled.autotune import triton_operations

SIZES = [Size(1, 1, 1, 1), Size(5, 11, 3, 4), Size(7, 20, 77, 20), Size(17, 30, 130, 5), Size(2, 9, 600, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_decode_and_sampled_product(size: Size, dtype: torch.dtype) -> None:
    checks.check_bags(size, dtype=dtype)


@pytest.mark.parametrize("size", SIZES)
def test_every_gradient(size: Size) -> None:
    checks.check_gradients(size)


def test_gradients_of_rows_too_wide_for_one_program() -> None:
    checks.check_gradients(Size(2, 3, 4099, 2))


def test_a_latent_that_fires_on_every_token() -> None:
    checks.check_popular()


# The interpreter multiplies bfloat16 as integers (3.9): float16 stands for it here, bfloat16 is for tests/gpu.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [Size(1, 1, 1, 1), Size(3, 11, 3, 4), Size(2, 300, 17, 300), Size(4, 300, 64, 3)])
def test_encode_and_selection(size: Size, dtype: torch.dtype) -> None:
    checks.check_encode(size, dtype=dtype)


@pytest.mark.parametrize("way", ["wide", "narrow", "library"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_product_of_many_tiles(dtype: torch.dtype, way: str) -> None:
    checks.check_product(Size(1100, 400, 33, 1), dtype=dtype, way=way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 2, 5, 100, 200])
def test_selection_of_ties_and_of_what_is_not_finite(k: int, dtype: torch.dtype) -> None:
    checks.check_select(checks.awkward_values().to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_selection_of_rounded_values(dtype: torch.dtype) -> None:
    checks.check_select(checks.drawn(6, 500).to(dtype), 40)


def test_a_selection_too_large_for_one_program() -> None:
    checks.check_select(checks.drawn(2, 16_500), 300)


@pytest.mark.parametrize("size", [Size(1, 1, 1, 1), Size(5, 1100, 1, 4), Size(600, 40, 1, 3)])
def test_tokens_since_fired(size: Size) -> None:
    checks.check_tokens_since_fired(size)


@pytest.mark.parametrize(
    ("shape", "sphere"),
    [((7, 33), True), ((3, 2051), True), ((5, 1000), True), ((1,), False), ((130,), False), ((3, 700), False)],
)
def test_adam(shape: tuple[int, ...], sphere: bool) -> None:
    checks.check_adam(shape, sphere=sphere)


def test_nan_is_never_hidden_and_spreads_no_further() -> None:
    ours, size = triton_operations(), Size(3, 8, 5, 2)
    indices = torch.tensor([[1, 2], [2, 3], [5, 6]])
    W, acts, rows = checks.drawn(8, 5), torch.zeros(3, 2), checks.drawn(3, 5)
    W[3], rows[2, 4] = torch.nan, torch.nan
    assert ours.decode(acts, indices, W).isnan().any(1).tolist() == [False, True, False]
    assert ours.sampled_product(rows, indices, W).isnan().tolist() == [[False] * 2, [False, True], [True] * 2]
    acts[2, 0] = 1.0
    W_dec, W_enc, b_enc = ours.latent_gradients(acts, indices, checks.drawn(3, 5, seed=1), rows, W)
    assert not W_dec.isnan().any()
    assert W_enc.isnan().any(1).nonzero().flatten().tolist() == [5, 6]
    assert not b_enc.isnan().any()
    # ReLU of NaN is NaN, and hands the gradient on.
    acts[0, 0] = torch.nan
    assert ours.latent_gradients(acts, indices, checks.drawn(3, 5, seed=1), rows, W)[2][1] != 0
    x, W_wide = checks.drawn(size.n_tokens, 5), checks.drawn(70, 5)
    x[1, 0] = torch.nan
    values, _ = ours.encode_top_k(x, W_wide, torch.zeros(70), k=2)
    assert values.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_a_whole_step_traces_without_a_graph_break() -> None:
    ours = triton_operations()

    def step(x: torch.Tensor, W_enc: torch.Tensor, b: torch.Tensor, W_dec: torch.Tensor) -> tuple[torch.Tensor, ...]:
        acts, indices = ours.encode_top_k(x, W_enc, b, k=3)
        error, squares = ours.reconstruction_error(x, acts.relu(), indices, W_dec, x[0])
        by_acts = ours.sampled_product(error, indices, W_dec)
        found = ours.latent_gradients(acts.relu(), indices, error, x, W_dec)
        ours.add_latent_gradients(acts.relu(), indices, error, x, W_dec, *found)
        silent = ours.count_tokens_since_fired(acts, indices, torch.zeros(len(b), dtype=torch.int64))
        zeros = torch.zeros_like(W_dec)
        state = (W_dec.clone(), found[0], zeros, zeros.clone(), zeros.clone(), torch.ones(4))
        norm = ours.adam(*state, betas=[0.9, 0.999], eps=1e-9, sphere=True)
        return squares, by_acts, *found, silent, state[0], norm

    given = (checks.drawn(4, 6), checks.drawn(70, 6), checks.drawn(70), torch.eye(70, 6) + 1)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*given), step(*given), strict=True):
        torch.testing.assert_close(one, other)


def test_each_operation_does_what_it_is_registered_to_do() -> None:
    ours = triton_operations()
    x, acts, indices, W, b = (
        checks.drawn(4, 6),
        torch.ones(4, 2),
        torch.tensor([[1, 2]] * 4),
        checks.drawn(9, 6),
        torch.ones(9),
    )
    given = (acts, indices, checks.drawn(4, 6, seed=1), x, W)
    maxima = torch.zeros(4, 1, dtype=torch.int32)
    state = tuple(torch.rand(9, 6) for _ in range(5))
    constants = {"betas": [0.9, 0.99], "eps": 1e-9, "sphere": True}
    calls: list[tuple[Any, tuple[torch.Tensor, ...], dict[str, Any]]] = [
        (ours.encode, (x, W, b), {}),
        (ours.block_maxima, (x,), {}),
        (ours.select, (x, maxima), {"k": 2}),
        (ours.encode_top_k, (x, W, b), {"k": 2}),
        (ours.decode, (acts, indices, W), {}),
        (ours.reconstruction_error, (x, acts, indices, W, x[0].clone()), {}),
        (ours.sampled_product, (x, indices, W), {}),
        (ours.latent_gradients, given, {}),
        (ours.add_latent_gradients, (*given, torch.rand(9, 6), torch.rand(9, 6), torch.rand(9)), {}),
        (ours.sums_by_latent, (acts, acts.clone(), indices, x, x.clone()), {"n_latents": 9}),
        (ours.count_tokens_since_fired, (acts, indices, torch.arange(9)), {}),
        (ours.adam, (*state, torch.ones(4)), constants),
        (ours.gradient_squares, state[:2], {"sphere": True}),
    ]
    assert {call[0] for call in calls} == set(ours)
    for operation, arguments, names in calls:
        # Undeclared mutation or aliasing, and fake tensors that are not as the real ones.
        torch.library.opcheck(operation, arguments, names, test_utils=("test_schema", "test_faketensor"))
