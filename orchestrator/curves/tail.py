"""Which points of a curve its tail L∞ + a · tokens^(−b) is read from, and which b are allowed.

The quick readers use them: the plateau rule (`convergence`) and the expected stop (`expected_stop`). Neither needs
numpy: `orch status` loads none. The careful fit of a job's end is `limit.tail_fit`, over the whole curve.
"""

import math
from collections.abc import Sequence

LEAST_POINTS = 7
"""Three parameters and a scale leave three degrees of freedom; two doublings have about nine points."""
EXPONENTS = (0.05, 4.0)
"""Bounds of b. Below, the tail is a logarithm and L∞ cannot be determined; above, it is a step."""
_LENGTH = 4.0
"""Ratio of the last token count to the first: two doublings. A third is steeper than the tail's power law: on the
quickstart it drew L∞ down by 2%."""


def usable_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points of (tokens_seen, fvu) whose loss is above 0 and finite."""
    return [(tokens, loss) for tokens, loss in points if tokens > 0 and math.isfinite(loss) and loss > 0]


def tail_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the usable points of the last two doublings; empty where they are fewer than `LEAST_POINTS`."""
    usable = usable_points(points)
    tail = [(tokens, loss) for tokens, loss in usable if tokens * _LENGTH >= usable[-1][0]]
    return tail if len(tail) >= LEAST_POINTS else []
