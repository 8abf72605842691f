"""The dip is the distance to the nearest distribution with one mode: held against a linear program that finds it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

from worker.evaluation.layers.dip import dip_of_draws, dip_over

FACULTY = (
    "30 33 35 36 37 37 39 39 39 39 39 40 40 40 40 41 42 43 43 43 44 44 45 45 46 47 47 48 48 48 49 50 50 51 52 52 53 53 "
    "53 53 53 54 54 57 57 59 60 60 60 61 61 61 61 62 62 62 62 63 66 70 72 72"
)
"""Some ages with many ties."""


def nearest(places: NDArray[np.float64], masses: NDArray[np.float64]) -> float:
    """Return the least sup |F − G| over G that are convex before a mode and concave behind it, with a jump there."""
    return min(_at_mode(places, masses, mode) for mode in range(len(places)))


def _at_mode(places: NDArray[np.float64], masses: NDArray[np.float64], mode: int) -> float:
    n = len(places)
    below, above = np.concatenate([[0], np.cumsum(masses)[:-1]]), np.cumsum(masses)
    # Unknown: G at the points up to the mode, from the left; from the mode on, from the right; and the distance.
    at = [*range(mode + 1), *range(mode, n)]
    rows: list[NDArray[np.float64]] = []
    bounds: list[float] = []

    def least(coefficients: dict[int, float], bound: float) -> None:
        row = np.zeros(n + 2)
        for column, value in coefficients.items():
            row[column] -= value
        rows.append(row)
        bounds.append(-bound)

    for column, point in enumerate(at):
        low = below[point] if column == mode else above[point]
        high = above[point] if column == mode + 1 else below[point]
        least({column: 1, n + 1: 1}, low)
        least({column: -1, n + 1: 1}, -high)
    for column in range(n):
        least({column + 1: 1, column: -1}, 0)  # it never falls
    for first in (*range(mode - 1), *range(mode + 1, n - 1)):
        sign = 1 if first < mode else -1
        one, two = (1 / (places[at[i + 1]] - places[at[i]]) for i in (first, first + 1))
        least({first + 2: sign * two, first + 1: -sign * (one + two), first: sign * one}, 0)
    cost = np.zeros(n + 2)
    cost[-1] = 1
    found = linprog(cost, A_ub=np.array(rows), b_ub=np.array(bounds), bounds=[(0, 1)] * (n + 2))
    assert found.success
    assert found.fun is not None
    return float(found.fun)


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [0, 2, 5], [0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_over_layers_it_is_the_distance_to_the_nearest_with_one_mode(places: list[int]) -> None:
    draw = np.random.default_rng(0)
    masses = draw.dirichlet(np.full(len(places), 0.5), size=12).T
    found = dip_over(torch.tensor(places).double(), torch.from_numpy(masses))
    at = np.array(places, dtype=np.float64)
    expected = [nearest(at, masses[:, latent]) for latent in range(12)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


def test_of_draws_it_is_that_of_a_distribution_over_them() -> None:
    values = np.random.default_rng(1).standard_normal((9, 12))
    found = dip_of_draws(torch.from_numpy(values))
    expected = [nearest(np.sort(column), np.full(9, 1 / 9)) for column in values.T]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


def test_what_is_known() -> None:
    two_ends = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).double().T
    assert dip_over(torch.arange(6).double(), two_ends).tolist() == [0.25, 0.0]
    assert dip_of_draws(torch.arange(10).double()[:, None]).item() == pytest.approx(1 / 20)
    ages = torch.tensor([float(age) for age in FACULTY.split()]).double()
    alone, counts = torch.unique(ages, return_counts=True)
    together = dip_over(alone, counts[:, None] / counts.sum())
    assert dip_of_draws(ages[:, None]).item() == pytest.approx(together.item()), "ties are one place of more mass"


def test_many_latents_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    masses = torch.rand(5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masses /= masses.sum(0)
    whole = dip_over(torch.arange(5).double(), masses)
    monkeypatch.setattr("worker.evaluation.layers.dip._VALUES_AT_ONCE", 40)
    assert dip_over(torch.arange(5).double(), masses).equal(whole)
