"""Interleaved timing: one run of each work per round, so that other load on the machine affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(works: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Return the median seconds of each work, one run of each per round; a work may say itself what it took."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + warm_up):
        for name, work in works.items():
            started = time.perf_counter()
            told = work()
            times[name].append(told if isinstance(told, float) else time.perf_counter() - started)
    return {name: statistics.median(seconds[warm_up:]) for name, seconds in times.items()}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of equal keys as text, the keys as heads."""
    heads = [*rows[0]]
    cells = [heads, *([_shown(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
