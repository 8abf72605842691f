"""Normalisation by hand, and the way back."""

from typing import get_args

import pytest
import torch

from orchestrator.config.job import Normalize
from worker.sae.normalize import denormalize, normalize


def test_unit_by_hand() -> None:
    found = normalize(torch.tensor([[1.0, 2.0, 3.0]]), "unit")
    torch.testing.assert_close(found.vectors, torch.tensor([[-1.0, 0.0, 1.0]]) / 2**0.5)
    assert found.mean.item() == 2
    assert found.scale.item() == pytest.approx(2**0.5)


def test_layer_norm_by_hand() -> None:
    found = normalize(torch.tensor([[1.0, 2.0, 3.0]]), "layer_norm")  # unbiased std = 1, eps added to it
    torch.testing.assert_close(found.vectors, torch.tensor([[-1.0, 0.0, 1.0]]) / (1 + 1e-5))


@pytest.mark.parametrize("kind", get_args(Normalize))
def test_there_and_back(kind: Normalize) -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 4 + 1
    found = normalize(x, kind)
    assert found.scale.shape == (3, 5, 1)
    torch.testing.assert_close(denormalize(*found), x)
    if kind == "unit":
        torch.testing.assert_close(found.vectors.norm(dim=-1), torch.ones(3, 5))
    if kind == "none":
        assert torch.equal(found.vectors, x)


@pytest.mark.parametrize("kind", get_args(Normalize))
def test_a_vector_without_variation_stays_finite(kind: Normalize) -> None:
    assert normalize(torch.full((1, 4), 3.0), kind).vectors.isfinite().all()
