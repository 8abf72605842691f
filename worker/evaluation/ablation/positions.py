"""Where latents are ablated: the same positions for every SAE and for what they are compared with."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from orchestrator.errors import ConfigError

PER_WINDOW = 8
"""Positions of a window, at most."""
WIDTH = 16
"""Positions among which those of a window lie: they share a clean row, and little is computed behind the last."""


class Window(NamedTuple):
    """A few positions of one context, near each other: what is measured in one forward pass."""

    context: int
    """Row of the held-out text."""
    at: Int[Tensor, " n_positions"]
    """Positions at which something is ablated."""
    length: int
    """Tokens of the context that are run: what comes later cannot change the logits that are compared."""


def draw_windows(
    is_measured: Bool[Tensor, "n_contexts context"], n_windows: int, affected: int, generator: torch.Generator
) -> list[Window]:
    """Return windows, as many of each context as of any other: of a context, one of more positions is likelier.

    Positions count that are measured and have `affected` tokens from there on. Where the text has fewer windows than
    asked for, all of them.

    Raises:
        ConfigError: no position counts.
    """
    usable = is_measured[:, : max(0, is_measured.shape[1] - affected + 1)]
    rounds = -(-n_windows // len(usable))
    by_context = {row: _draw(usable[row], rounds, generator) for row in range(len(usable))}
    order = torch.randperm(len(usable), generator=generator).tolist()
    found = [
        Window(row, at, int(at[-1]) + affected)
        for number in range(rounds)
        for row in order
        for at in by_context[row][number : number + 1]
    ]
    if not found:
        raise ConfigError(
            f"no position of the held-out text has {affected} tokens from there on in its context",
            hint="Lower ablation.affected_tokens.",
        )
    return found[:n_windows]


def _draw(usable: Bool[Tensor, " n"], n: int, generator: torch.Generator) -> list[Int[Tensor, " n_positions"]]:
    """Return the positions of n windows of one context, or of all it has."""
    blocks = [block.nonzero().squeeze(1) + i * WIDTH for i, block in enumerate(torch.split(usable, WIDTH))]
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return []
    sizes = torch.tensor([len(block) for block in blocks], dtype=torch.float64)
    chosen = torch.multinomial(sizes, min(n, len(blocks)), generator=generator)
    return [_sample(blocks[i], generator) for i in chosen.tolist()]


def _sample(positions: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n_positions"]:
    return positions[torch.randperm(len(positions), generator=generator)[:PER_WINDOW]].sort().values
