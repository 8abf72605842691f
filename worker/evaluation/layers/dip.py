"""Hartigan's dip of many small distributions at once: how far each is from the nearest one with a single mode.

It is half the most by which two intervals hold more than one, of mass less λ times length, over all λ.
Source: Hartigan and Hartigan 1985; Müller and Sawitzki 1991, section 4 (the dip as a difference of excess masses).
"""

import torch
from jaxtyping import Float
from torch import Tensor

_VALUES_AT_ONCE = 1 << 22


def dip_over(
    places: Float[Tensor, " n_points"], masses: Float[Tensor, "n_points n_latents"]
) -> Float[Tensor, " n_latents"]:
    """Return the dip of each distribution over the same places, which ascend: 0 at one place, 1/4 at two alike."""
    lengths = (places - places[:, None]).triu()
    held = torch.cat([torch.zeros_like(masses[:1]), masses.cumsum(0)])
    within = held[None, 1:] - held[:-1, None]  # of the interval from point i (row) to point j
    is_interval = torch.ones_like(lengths).triu().bool()
    distinct = torch.unique(lengths[is_interval])
    most = torch.stack([within[is_interval & (lengths == length)].amax(0) for length in distinct])
    return _dip(places[:, None].expand_as(masses), masses, most, distinct[:, None].expand_as(most))


def dip_of_draws(values: Float[Tensor, "n_draws n_latents"]) -> Float[Tensor, " n_latents"]:
    """Return the dip of each column, whose values are draws: at least 1 / (2 n_draws)."""
    n = len(values)
    ordered = values.sort(0).values
    shortest = torch.stack([(ordered[count:] - ordered[: n - count]).amin(0) for count in range(n)])
    most = (torch.arange(1, n + 1, dtype=values.dtype, device=values.device) / n)[:, None].expand_as(shortest)
    return _dip(ordered, torch.full_like(ordered, 1 / n), most, shortest)


def _dip(places: Tensor, masses: Tensor, most: Tensor, lengths: Tensor) -> Float[Tensor, " n_latents"]:
    """Return the dips; `most` is the greatest mass of an interval of each of the `lengths`.

    The excess of one interval, the maximum of `most` − λ · `lengths`, bends where two of these lines cross, and only
    there, or at the largest λ, can the difference be largest.
    """
    first, second = torch.triu_indices(len(most), len(most), 1)
    size = max(1, _VALUES_AT_ONCE // (len(first) + 1))
    found = []
    for start in range(0, masses.shape[1], size):
        part = slice(start, start + size)
        slopes = (most[second, part] - most[first, part]) / (lengths[second, part] - lengths[first, part])
        slopes = slopes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0)
        slopes = torch.cat([slopes, torch.full_like(slopes[:1], torch.finfo(torch.float32).max)])
        found.append(_difference(places[:, part], masses[:, part], slopes).amax(0) / 2)
    return torch.cat(found)


def _difference(
    places: Float[Tensor, "n_points n_latents"],
    masses: Float[Tensor, "n_points n_latents"],
    slopes: Float[Tensor, "n_slopes n_latents"],
) -> Float[Tensor, "n_slopes n_latents"]:
    """Return by how much two intervals hold more than one, in one scan: the best that end here, and the best so far."""
    one = masses[0].expand_as(slopes)
    best_one, best_two, two = one, one, torch.full_like(slopes, -torch.inf)
    for gap, mass in zip(places.diff(dim=0), masses[1:], strict=True):
        two = torch.maximum(two - slopes * gap, best_one) + mass
        one = (one - slopes * gap).clamp_min(0) + mass
        best_one, best_two = torch.maximum(best_one, one), torch.maximum(best_two, two)
    return best_two - best_one
