"""Sparse products, against dense ones and float64 autograd."""

import pytest
import torch

from worker.sae.sparse import selected_pre_acts, sparse_decode


def _tensors(n_tokens: int, n_latents: int, d_model: int, k: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    indices = torch.stack([torch.randperm(n_latents, generator=generator)[:k] for _ in range(n_tokens)])
    return draw(n_tokens, d_model), draw(d_model), draw(n_latents, d_model), draw(n_latents), indices


@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model", "k"), [(1, 1, 1, 1), (5, 11, 3, 4), (33, 20, 7, 20)])
def test_encoder_gradients_are_those_of_the_dense_product(n_tokens: int, n_latents: int, d_model: int, k: int) -> None:
    x, b_pre, W_enc, b_enc, indices = _tensors(n_tokens, n_latents, d_model, k)
    weights = torch.randn(n_tokens, k, dtype=torch.float64)
    dense = ((x - b_pre) @ W_enc.T + b_enc).gather(1, indices)
    wanted = torch.autograd.grad((dense * weights).sum(), (x, b_pre, W_enc, b_enc))
    pre_acts = ((x - b_pre) @ W_enc.T + b_enc).detach()
    values = selected_pre_acts(x, b_pre, W_enc, b_enc, (pre_acts.gather(1, indices), indices))
    assert torch.equal(values, dense)
    found = torch.autograd.grad((values * weights).sum(), (x, b_pre, W_enc, b_enc))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_decode_and_its_gradients_are_those_of_the_dense_product() -> None:
    _, _, W_dec, _, indices = _tensors(9, 12, 5, 3)
    acts = torch.rand(9, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(9, 5, dtype=torch.float64)
    dense = torch.zeros(9, 12, dtype=torch.float64).scatter(1, indices, acts) @ W_dec
    wanted = torch.autograd.grad((dense * weights).sum(), (acts, W_dec))
    sparse = sparse_decode(acts, indices, W_dec)
    torch.testing.assert_close(sparse, dense)
    for one, other in zip(torch.autograd.grad((sparse * weights).sum(), (acts, W_dec)), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_constant_gets_no_gradient() -> None:
    x, b_pre, W_enc, b_enc, indices = _tensors(4, 6, 3, 2)
    values = torch.zeros(4, 2, dtype=torch.float64)
    selected_pre_acts(x.detach(), b_pre.detach(), W_enc, b_enc, (values, indices)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert b_pre.grad is None
    assert W_enc.grad is not None
    untouched = [i for i in range(6) if i not in indices]
    assert not W_enc.grad[untouched].any()
