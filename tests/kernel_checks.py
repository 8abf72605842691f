"""What a kernel must agree with: dense float64 products and autograd, a stable sort, torch's own Adam."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worker.sae.compiled.autotune import triton_operations
from worker.sae.dead_latents import count_tokens_since_fired

CLOSE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest error of a product, relative to the largest value, by the dtype it is stored in."""


class Size(NamedTuple):
    """A batch."""

    n_tokens: int
    n_latents: int
    d_model: int
    k: int


def drawn(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device)


def indices_of(size: Size, device: str) -> Tensor:
    scores = torch.rand(size.n_tokens, size.n_latents, generator=torch.Generator().manual_seed(size.k))
    return scores.topk(size.k, dim=1).indices.to(device)


def assert_near(found: Tensor, wanted: Tensor, *, tolerance: float = 1e-5) -> None:
    """Compare against the largest value: a sum of terms that cancel has no small relative error."""
    assert found.shape == wanted.shape
    if wanted.numel():
        gap = (found.double() - wanted.double()).abs().max().item()
        assert gap <= tolerance * max(1.0, wanted.double().abs().max().item()), gap


def dense_decode(acts: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return torch.zeros(len(acts), len(W), dtype=acts.dtype, device=acts.device).scatter(1, indices, acts) @ W


def check_bags(size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """decode, reconstruction_error and sampled_product, W_dec of `dtype`."""
    ours = triton_operations()
    indices, acts = indices_of(size, device), drawn(size.n_tokens, size.k, device=device).relu()
    W = drawn(size.n_latents, size.d_model, device=device).to(dtype)
    x, b_pre = drawn(size.n_tokens, size.d_model, device=device), drawn(size.d_model, device=device)
    wanted = dense_decode(acts.double(), indices, W.double())
    assert_near(ours.decode(acts, indices, W), wanted)
    error, squares = ours.reconstruction_error(x, acts, indices, W, b_pre)
    assert_near(error, x - wanted - b_pre)
    assert_near(squares, (x - wanted - b_pre).square().sum(1))
    assert_near(ours.sampled_product(x, indices, W), (x.double() @ W.double().T).gather(1, indices))


def check_gradients(size: Size, *, device: str = "cpu", indices: Tensor | None = None) -> None:
    """Every gradient against float64 autograd through the dense model, by each of the three ways."""
    ours = triton_operations()
    indices = indices_of(size, device) if indices is None else indices
    centred, gradient = (drawn(size.n_tokens, size.d_model, device=device, seed=s) for s in (1, 2))
    W_enc, W_dec = (
        drawn(size.n_latents, size.d_model, device=device, seed=s).double().requires_grad_() for s in (3, 4)
    )
    b_enc = drawn(size.n_latents, device=device).double().requires_grad_()
    acts = (centred.double() @ W_enc.T + b_enc).gather(1, indices).relu()
    loss = (dense_decode(acts, indices, W_dec) * gradient).sum()
    *wanted, by_acts = torch.autograd.grad(loss, (W_dec, W_enc, b_enc, acts))
    fired, values = acts.detach() > 0, acts.detach().float()
    given = (values, indices, gradient, centred, W_dec.detach().float())
    found = ours.latent_gradients(*given)
    into = [drawn(*value.shape, device=device) for value in wanted]
    before = [value.clone() for value in into]
    ours.add_latent_gradients(*given, *into)
    by = (values, (by_acts * fired).float(), indices, gradient, centred)
    apart = ours.sums_by_latent(*by, n_latents=size.n_latents)
    again = ours.latent_gradients(*given)
    unchosen = torch.ones(size.n_latents, dtype=torch.bool, device=device)
    unchosen[indices.flatten()] = False
    for i, value in enumerate(wanted):
        assert_near(found[i], value)
        assert_near(apart[i], value)
        assert_near(into[i], before[i] + value)
        assert torch.equal(found[i], again[i])
        assert not found[i][unchosen].any()
        assert torch.equal(into[i][unchosen], before[i][unchosen])


def check_popular(*, device: str = "cpu", n_tokens: int = 300) -> None:
    """Two latents that every token chose: more than a chunk each, and one between them that none did."""
    size = Size(n_tokens, 4, 5, 2)
    check_gradients(size, device=device, indices=torch.tensor([3, 1], device=device).repeat(n_tokens, 1))


def check_product(
    size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32, way: str = "wide"
) -> tuple[Tensor, Tensor]:
    """The encoder's product and its maxima."""
    from worker.sae.compiled.kernels import blockmax

    x, W, b = encoder_of(size, device, dtype)
    pre_acts, maxima = blockmax.encode(x, W, b, way=way)
    assert_near(pre_acts, x.double() @ W.double().T + b, tolerance=CLOSE[dtype])
    assert torch.equal(maxima, block_maxima(pre_acts))
    return pre_acts, maxima


def encoder_of(size: Size, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, W = drawn(size.n_tokens, size.d_model, device=device), drawn(size.n_latents, size.d_model, device=device)
    return x.to(dtype), W.to(dtype), drawn(size.n_latents, device=device)


def check_encode(size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32, way: str = "wide") -> None:
    """The product, and that the selection from it is the stable sort's, bit for bit."""
    from worker.sae.compiled.kernels import blockmax

    pre_acts, maxima = check_product(size, device=device, dtype=dtype, way=way)
    x, W, b = encoder_of(size, device, dtype)
    assert_selected(blockmax.select(pre_acts, maxima, k=size.k), pre_acts, size.k)
    assert torch.equal(blockmax.block_maxima(pre_acts), maxima), "of what another product has computed, too"
    values, indices = blockmax.encode_top_k(x, W, b, k=size.k, way=way)
    assert_selected((values, indices), pre_acts, size.k)


def check_select(values: Tensor, k: int) -> None:
    from worker.sae.compiled.kernels import blockmax

    assert_selected(blockmax.select(values, block_maxima(values), k=k), values, k)


def awkward_values(device: str = "cpu") -> Tensor:
    """Rows of ties, with −0 beside 0, NaN of both signs, ±∞, all equal, all −∞, all NaN."""
    values = torch.randint(-2, 3, (9, 200), generator=torch.Generator().manual_seed(0)).float()
    values[0][values[0] == 0] *= torch.tensor([-1.0, 1.0])[torch.arange(int((values[0] == 0).sum())) % 2]
    values[1, 7], values[2, 150], values[3, 9], values[4, 190] = torch.nan, -torch.nan, torch.inf, -torch.inf
    values[2, 150].copysign_(torch.tensor(-1.0))
    values[5], values[6], values[7] = 1.0, -torch.inf, torch.nan
    return values.to(device)


def block_maxima(pre_acts: Tensor) -> Tensor:
    """The keys in plain torch: int32 in the order of the floats."""
    values = torch.where(pre_acts == 0, 0.0, pre_acts.float())
    bits = values.view(torch.int32)
    keys = torch.where(values.isnan(), 2**31 - 1, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    keys = torch.nn.functional.pad(keys, (0, -keys.shape[1] % 64), value=-(2**31))
    return keys.view(len(keys), -1, 64).amax(2).to(torch.int32)


def assert_selected(found: tuple[Tensor, Tensor], pre_acts: Tensor, k: int) -> None:
    # On the CPU: a GPU sorts NaN by its sign, and −0 below 0.
    values, indices = (part.to(pre_acts.device) for part in pre_acts.cpu().sort(dim=1, descending=True, stable=True))
    differs = (found[1] != indices[:, :k]).any(1).nonzero().flatten().tolist()
    assert not differs, f"rows {differs}: {found[1][differs]} and not {indices[differs, :k]}"
    torch.testing.assert_close(found[0], values[:, :k], rtol=0, atol=0, equal_nan=True)


def check_tokens_since_fired(size: Size, *, device: str = "cpu") -> None:
    indices, acts = indices_of(size, device), drawn(size.n_tokens, size.k, device=device).relu()
    before = torch.arange(size.n_latents, device=device) * 10**9
    found = triton_operations().count_tokens_since_fired(acts, indices, before)
    assert torch.equal(found, count_tokens_since_fired(acts, indices, before))


def check_adam(shape: tuple[int, ...], *, sphere: bool, device: str = "cpu") -> None:
    """Three steps beside torch's Adam, in float64, with everything around it written out."""
    ours, betas, eps, ema, scale = triton_operations(), (0.9, 0.999), 6.25e-10, 0.995, 0.5
    start = drawn(*shape, device=device)
    if sphere:
        start /= start.norm(dim=1, keepdim=True)
    wanted = torch.nn.Parameter(start.double())
    reference = torch.optim.Adam([wanted], lr=1e-2, betas=betas, eps=eps)
    average = torch.zeros_like(wanted)
    state = [start.clone(), *(torch.zeros_like(start) for _ in range(3))]
    for t in (1, 2, 3):
        gradient = drawn(*shape, device=device, seed=t)
        projected = gradient.double()
        if sphere:
            projected = projected - (projected * wanted.detach()).sum(1, keepdim=True) * wanted.detach()
        wanted.grad = projected * scale
        reference.step()
        if sphere:
            wanted.data /= wanted.data.norm(dim=1, keepdim=True)
        average.lerp_(wanted.data, 1 - ema)
        numbers = [1e-2 / (1 - betas[0] ** t), math.sqrt(1 - betas[1] ** t), scale, 1 - ema]
        scalars = torch.tensor(numbers, device=device)
        assert_near(ours.gradient_squares(state[0], gradient, sphere=sphere), projected.square().sum(), tolerance=1e-4)
        w, m, v, mean = state
        squares = ours.adam(w, gradient, m, v, mean, scalars, betas=list(betas), eps=eps, sphere=sphere)
        assert_near(squares, projected.square().sum(), tolerance=1e-4)
        assert_near(w, wanted.data, tolerance=1e-4)
        assert_near(mean, average, tolerance=1e-4)
        assert_near(m, reference.state[wanted]["exp_avg"])
        assert_near(v, reference.state[wanted]["exp_avg_sq"])
