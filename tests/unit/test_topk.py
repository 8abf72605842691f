"""Exact selection, against a stable sort."""

import pytest
import torch

from worker.sae.topk import batch_top_k, top_k


def _reference(values: torch.Tensor, k: int) -> torch.Tensor:
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize(
    ("n_tokens", "n_latents", "k"), [(1, 1, 1), (3, 7, 2), (17, 129, 8), (64, 1024, 16), (5, 9, 9)]
)
def test_agrees_with_a_stable_sort(n_tokens: int, n_latents: int, k: int) -> None:
    values = torch.randn(n_tokens, n_latents, generator=torch.Generator().manual_seed(n_latents))
    assert torch.equal(top_k(values, k), _reference(values, k))


def test_equal_values_go_to_the_lower_index() -> None:
    generator = torch.Generator().manual_seed(0)
    for k in (1, 3, 16):
        values = torch.randint(-3, 4, (50, 40), generator=generator).float()
        assert torch.equal(top_k(values, k), _reference(values, k))
    assert top_k(torch.zeros(2, 6), 3).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_takes_signed_values() -> None:
    assert top_k(torch.tensor([[-5.0, -1.0, -3.0]]), 2).tolist() == [[1, 2]]


def test_a_batch_keeps_k_per_token_on_average() -> None:
    values = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 0.0]])
    assert batch_top_k(values, 1).tolist() == [[True, True, False], [False, False, False]]
    assert batch_top_k(torch.zeros(4, 5), 2).sum() == 8
