"""Which points of a curve its tail L∞ + a · tokens^(−b) is fitted to, and which b are allowed.

Both fits read this: the careful one at a job's end (`convergence.tail_fit`) and the quick one while it trains
(`expected_stop`). It loads neither numpy nor scipy: `orch status` needs it.
"""

import math
from collections.abc import Sequence

LEAST_POINTS = 7
"""Three parameters and a scale leave three degrees of freedom; the tail has about nine points. With five, one noisy
point decides L∞."""
EXPONENTS = (0.05, 4.0)
"""Bounds of b. Below, the tail is a logarithm and L∞ cannot be determined; above, it is a step."""
_LENGTH = 4.0
"""Ratio of the last token count to the first of the tail: two doublings. A third is steeper than the tail's power law:
on the quickstart it drew L∞ down by 2%, and with it T(1%) out of reach."""


def tail_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points of (tokens_seen, fvu) to fit: those of the last two doublings whose loss is above 0 and finite.

    Empty where they are fewer than `LEAST_POINTS`.
    """
    usable = [(tokens, loss) for tokens, loss in points if tokens > 0 and math.isfinite(loss) and loss > 0]
    tail = [(tokens, loss) for tokens, loss in usable if tokens * _LENGTH >= usable[-1][0]]
    return tail if len(tail) >= LEAST_POINTS else []
