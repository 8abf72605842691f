"""How fast a job trains: tokens a second over the last minute, once there is enough of it to mean something."""

from collections import deque

WINDOW_SECONDS = 60.0
LEAST_SECONDS = 10.0
"""Before so many seconds of training a rate says how the start went: the first windows are captured, steps compiled."""


class Rate:
    """Tokens a second of one job, from where it was at some moments."""

    def __init__(self) -> None:
        """Begin without a moment."""
        self._moments: deque[tuple[float, int]] = deque()

    def at(self, seconds: float, tokens_seen: int) -> float | None:
        """Note where the job is, by a monotonic clock; return its rate, None while that says nothing."""
        self._moments.append((seconds, tokens_seen))
        while seconds - self._moments[0][0] > WINDOW_SECONDS:
            self._moments.popleft()
        first, tokens = self._moments[0]
        elapsed = seconds - first
        return max(0, tokens_seen - tokens) / elapsed if elapsed >= LEAST_SECONDS else None
