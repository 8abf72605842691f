"""Draw activations of each latent: each of its positive ones is as likely, whichever context it is in."""

import numpy as np
from numpy.typing import NDArray

from worker.evaluation.n2g.latent_acts import Firings


def draw(firings: Firings, latents: NDArray[np.int64], n: int, *, seed: int) -> Firings:
    """Return up to n activations of each latent, drawn without replacement.

    What is drawn of a latent depends on the seed, its number and where it is active: not on the other latents.
    """
    keys = _random_keys(seed, latents[firings.slots], firings.positions.astype(np.int64))
    order = np.lexsort((keys, firings.slots))
    slots = firings.slots[order]
    rank = np.arange(len(order)) - np.searchsorted(slots, slots)
    return firings.chosen(order[rank < n])


def _random_keys(seed: int, latents: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a number for each pair that looks drawn at random: splitmix64 of one after the other."""
    key = _mixed(np.full(len(latents), seed, dtype=np.uint64))
    return _mixed(_mixed(key ^ latents.astype(np.uint64)) ^ positions.astype(np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64 of each number (Steele, Lea, Flood: Fast splittable pseudorandom number generators)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
