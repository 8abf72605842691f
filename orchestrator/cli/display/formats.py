"""Numbers as a person reads them: counts, durations, shares, bars and sparklines."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.formatting import NONE, count

_BLOCKS = "▁▂▃▄▅▆▇█"


def size(n_bytes: float) -> str:
    """Write a size on disk: 412 kB, 1.05 GB."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    found = count(n_bytes)
    return f"{found[:-1]} {found[-1]}B"


def plural(number: int, word: str) -> str:
    """Write a small number with its noun: 1 worker, 2 workers."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def scientific(value: float | None) -> str:
    """Write a FLOP count: 3.1e13."""
    if value is None or not math.isfinite(value):
        return NONE
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def ratio(value: float | None) -> str:
    """Write an fvu with four digits after the point."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


def share(value: float | None) -> str:
    """Write a share in percent."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1%}"


def active_latents(value: float | None) -> str:
    """Write an L0, latents per token, with a digit after the point."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1f}"


def loss(fvu: float | None, l0: float | None) -> str:
    """Write an fvu with the L0 it was reached at, without which it says little: fvu 0.1234, L0 8.0."""
    return f"fvu {ratio(fvu)}" + ("" if l0 is None else f", L0 {active_latents(l0)}")


def short_id(text: str) -> str:
    """Write a content id, a sha256 in hex, by its first ten digits; any other text stays as it is."""
    return text[:10] if len(text) == 64 and not set(text) - set("0123456789abcdef") else text


def passes(value: float | None) -> str:
    """Write how many passes over a text a budget is, with two digits at least."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def moment(seconds: float | None) -> str | None:
    """Write epoch seconds as RFC 3339, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(seconds: float | None) -> str:
    """Write epoch seconds as the local time of day, with the date when it is another day."""
    if seconds is None:
        return NONE
    then = datetime.fromtimestamp(seconds).astimezone()
    today = then.date() == datetime.now().astimezone().date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def bar(part: float, width: int) -> tuple[str, str]:
    """Return the done and the open piece of a progress bar, in half-cell steps."""
    halves = round(min(1.0, max(0.0, part)) * 2 * width)
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return done, "─" * (width - len(done))


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a falling curve in one line, on a logarithmic scale, the newest value last."""
    logs = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    if len(logs) > width:
        logs = [logs[round(at * (len(logs) - 1) / (width - 1))] for at in range(width)]
    if not logs:
        return ""
    low, span = min(logs), max(logs) - min(logs)
    return "".join(_BLOCKS[round((value - low) / span * 7) if span else 0] for value in logs)
