"""Exact selection, against a stable sort."""

import pytest
import torch

from worker.sae.topk import batch_top_k, keep_top_k_, largest, top_k


def _reference(values: torch.Tensor, k: int) -> torch.Tensor:
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize(
    ("n_tokens", "n_latents", "k"), [(1, 1, 1), (3, 7, 2), (17, 129, 8), (64, 1024, 16), (5, 9, 9), (7, 64, 1)]
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


def test_equal_values_at_the_edge_are_seen_where_torch_is_asked_for_no_more() -> None:
    values = torch.randint(-3, 4, (50, 64 * 3), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(top_k(values, 3), _reference(values, 3))
    values = torch.zeros(2, 64)
    values[1, 5] = 1.0
    assert top_k(values, 1).tolist() == [[0], [5]]


def test_takes_signed_values() -> None:
    assert top_k(torch.tensor([[-5.0, -1.0, -3.0]]), 2).tolist() == [[1, 2]]


def test_a_batch_keeps_k_per_token_on_average() -> None:
    values = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 0.0]])
    assert batch_top_k(values, 1).tolist() == [[True, True, False], [False, False, False]]
    assert batch_top_k(torch.zeros(4, 5), 2).sum() == 8


@pytest.mark.parametrize(("n_latents", "k"), [(16_384, 32), (512, 1), (64 * 40, 8), (64 * 40 + 1, 8)])
def test_two_stages_select_what_one_does(n_latents: int, k: int) -> None:
    values = torch.randn(9, n_latents, generator=torch.Generator().manual_seed(k))
    assert torch.equal(top_k(values, k), _reference(values, k))
    rounded = (values * 2).round()  # ties in and across blocks, and at the edge
    assert torch.equal(top_k(rounded, k), _reference(rounded, k))


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_rounded_values_are_selected_by_their_bits_whatever_their_sign(shift: float) -> None:
    values = (torch.randn(20, 4096, generator=torch.Generator().manual_seed(1)) + shift).bfloat16()
    found, indices = largest(values, 6)
    assert torch.equal(found, values.topk(6, dim=1).values)
    assert torch.equal(values.gather(1, indices), found)


@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_keeping_in_place_keeps_what_the_selection_returns(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for values in (torch.randn(30, 40, generator=generator), torch.randint(-3, 4, (30, 40), generator=generator)):
        values, at = values.float(), top_k(values.float(), k)
        wanted = torch.zeros(30, 40).scatter(1, at, values.gather(1, at)).relu()
        assert torch.equal(keep_top_k_(values, k), wanted)


def test_a_value_that_is_not_a_number_is_taken_not_hidden() -> None:
    for n_latents in (10, 4096):
        values = torch.randn(3, n_latents)
        values[1, 7] = torch.nan
        assert 7 in top_k(values, 2)[1]
