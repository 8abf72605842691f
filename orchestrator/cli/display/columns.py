"""The columns in which jobs are shown."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import active_latents, bar, clock, passes, ratio, share, short_id
from orchestrator.cli.display.tables import Column
from orchestrator.formatting import NONE, count, duration, with_error
from orchestrator.job_states import TERMINAL

if TYPE_CHECKING:
    from orchestrator.results import JobRow, RegisteredWorker

COLOURS = {
    "queued": "white",
    "running": "cyan",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "bright_black",
}
MARKS = {"queued": "○", "running": "●", "paused": "‖", "succeeded": "✓", "failed": "✗", "cancelled": "–"}
WORKER_COLOURS = {
    "at work": "cyan",
    "idle": "white",
    "unwell": "red",
    "draining": "yellow",
    "stopping": "yellow",
    "lost": "red",
}
_LEASE_LOW = 30
_JOBS_NAMED = 6
_LONG_PREFIX = 8
_LEAST_SWEPT = 12


def job_columns(
    rows: "Sequence[JobRow]", *, drawn: bool, wide: bool = False, curve: "Callable[[JobRow], str] | None" = None
) -> "list[Column[JobRow]]":
    """Return the columns for these jobs; `drawn` ones have marks and bars, `curve` adds a sparkline."""
    prefix_lengths = {} if wide else _common_prefixes(rows)
    columns: list[Column[JobRow]] = [
        Column("ID", lambda row: str(row.id), right=True),
        Column("SWEEP", lambda row: row.sweep, weight=5),
        Column("STATE", lambda row: state_cell(row, drawn=drawn)),
        Column("N", lambda row: str(row.n_latents or "auto"), right=True),
        Column("K", lambda row: str(row.k), right=True),
        Column("SWEPT", lambda row: swept_cell(row, prefix_lengths), weight=9, least=_LEAST_SWEPT),
        Column("PROGRESS", lambda row: progress_cell(row, 12 if drawn else 0), right=True, weight=8),
        Column("TOK/S", lambda row: count(row.tokens_per_second), right=True, weight=4),
        Column("ETA", lambda row: duration(remaining(row)), right=True, weight=5),
        Column("FVU", lambda row: ratio(row.fvu), right=True),
        Column("L0", lambda row: active_latents(row.l0), right=True, weight=_l0_weight(rows)),
        Column("CURVE", curve or (lambda row: ""), weight=6),
        Column("DEAD", lambda row: share(row.dead_share), right=True, weight=3),
        Column("T(1%)", convergence_cell, right=True, weight=7),
        Column("WORKER", lambda row: row.worker or NONE, weight=1),
        Column("REASON", why, weight=2),
    ]
    hidden = {"SWEEP"} if len({row.sweep for row in rows}) <= 1 and not wide else set()
    hidden |= set() if curve else {"CURVE"}
    hidden |= set() if any(row.swept for row in rows) else {"SWEPT"}
    return [column for column in columns if column.title not in hidden] + (_wide_columns() if wide else [])


def _l0_weight(rows: "Sequence[JobRow]") -> int:
    """Return the weight of L0: where it is k, it says nothing that a narrow terminal must show."""
    return 9 if any(row.l0 is not None and round(row.l0, 1) != row.k for row in rows) else 2


def worker_columns(*, any_unwell: bool = False) -> "list[Column[RegisteredWorker]]":
    """Return the columns for workers."""
    return [
        Column("WORKER", lambda row: row.name),
        Column("HOST", lambda row: row.host, weight=3),
        Column("DEVICE", lambda row: row.device, weight=6),
        Column("JOBS", _jobs_cell, weight=7),
        Column("TOK/S", lambda row: count(row.tokens_per_second), right=True, weight=4),
        Column("BEAT", lambda row: duration(row.silent), right=True, weight=5),
        Column("VERSION", lambda row: row.version, weight=2),
        Column("STATE", lambda row: terminal.style(row.state, fg=WORKER_COLOURS.get(row.state, "bright_black"))),
        *([Column["RegisteredWorker"]("WHY", lambda row: row.unwell or "", weight=8)] if any_unwell else []),
    ]


def _jobs_cell(row: "RegisteredWorker") -> str:
    named = ",".join(str(job) for job in row.jobs[:_JOBS_NAMED])
    more = len(row.jobs) - _JOBS_NAMED
    return (f"{named} +{more}" if more > 0 else named) or NONE


def state_cell(row: "JobRow", *, drawn: bool) -> str:
    """Return the state; running>cancel when something else is asked for."""
    asked = f">{row.desired}" if row.state == "running" and row.desired != "run" else ""
    mark = f"{MARKS[row.state]} " if drawn else ""
    return terminal.style(f"{mark}{row.state}{asked}", fg=COLOURS[row.state], bold=row.state == "running")


def swept_cell(row: "JobRow", prefix_lengths: Mapping[str, int]) -> str:
    """Return what else than n and k sets a job apart from the others of its sweep, by the keys' last parts."""
    short = {key: key.rpartition(".")[2] for key in row.swept}
    names = [*short.values()]
    parts = (
        f"{short[key] if names.count(short[key]) == 1 else key}={_value(value, skip=prefix_lengths.get(key, 0))}"
        for key, value in row.swept.items()
    )
    return " ".join(parts) or NONE


def _common_prefixes(rows: "Sequence[JobRow]") -> dict[str, int]:
    """Return, by key, the length of a long prefix that all its texts share, up to a separator."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for key, value in row.swept.items():
            texts.setdefault(key, []).append(value if isinstance(value, str) else "")
    shared = {key: _common_prefix(min(found), max(found)) for key, found in texts.items()}  # all have what these share
    lengths = {key: 1 + max(text.rfind(mark) for mark in "/:?&") for key, text in shared.items()}
    return {key: length for key, length in lengths.items() if length >= _LONG_PREFIX}


def _common_prefix(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _value(value: Any, *, skip: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return f"…{value[skip:]}" if skip else short_id(value)
    return json.dumps(value)  # null and true, as a sweep file has them


def progress_cell(row: "JobRow", width: int) -> str:
    """Return the share of the budget used, with a bar of `width` cells before it."""
    part = fraction(row)
    done, left = bar(part, width)
    drawn = terminal.style(done, fg=COLOURS[row.state]) + terminal.style(left, fg="bright_black") + " " if width else ""
    return drawn + (f"{int(part * 100):3}%" if width else f"{int(part * 100)}%")


def fraction(row: "JobRow") -> float:
    """Return how much of its budget a job has used."""
    return min(1.0, (row.tokens_seen or 0) / row.max_tokens)


def remaining(row: "JobRow") -> float | None:
    """Return the seconds to where its curve says it will stop; while that says nothing, to the end of the budget."""
    if row.state != "running" or not row.tokens_per_second:
        return None
    end = row.max_tokens if row.expected_tokens is None else row.expected_tokens
    return max(0, end - (row.tokens_seen or 0)) / row.tokens_per_second


def why(row: "JobRow") -> str:
    """Return why a job is not running, or what came out of it."""
    return row.outcome or row.reason or ""


def convergence_cell(row: "JobRow") -> str:
    """Return the tokens to convergence; of a job stopped before, what they are known to exceed."""
    if row.tokens_to_convergence is None and row.tokens_lower_bound is not None:
        return f">{count(row.tokens_lower_bound)}"
    return count(row.tokens_to_convergence)


def limit_cell(row: "JobRow") -> str:
    """Return the limit of a job's curve, with its standard error where it has one."""
    return NONE if row.l_inf is None else with_error(row.l_inf, row.l_inf_se)


def done_share(rows: "Sequence[JobRow]") -> float:
    """Return how much of the work of many jobs is done: a job that has ended counts whole."""
    parts = [1.0 if row.state in TERMINAL else fraction(row) for row in rows]
    return sum(parts) / len(parts) if parts else 0.0


def _wide_columns() -> "list[Column[JobRow]]":
    return [
        Column("PRI", lambda row: str(row.priority), right=True),
        Column("ATT", lambda row: str(row.attempt), right=True),
        Column("FAIL", lambda row: str(row.failures), right=True),
        Column("PREEMPT", lambda row: str(row.preemptions), right=True),
        Column("LEASE", _lease, right=True),
        Column("AGE", lambda row: duration(row.age), right=True),
        Column("CREATED", lambda row: clock(row.created_at)),
        Column("D_MODEL", lambda row: str(row.d_model or NONE), right=True),
        Column("LR", lambda row: "auto" if row.lr is None else f"{row.lr:g}", right=True),
        Column("SEED", lambda row: str(row.seed), right=True),
        Column("PASSES", lambda row: passes(row.passes), right=True),
        Column("L∞", limit_cell, right=True),
        Column("UNTRAINED", lambda row: ratio(row.untrained_fvu), right=True),
        Column("CONFIG", lambda row: row.config_id[:10]),
        Column("MLFLOW", lambda row: row.mlflow_run_id or NONE),
        Column("LABELS", lambda row: ",".join(f"{key}={value}" for key, value in row.labels.items()) or NONE),
    ]


def _lease(row: "JobRow") -> str:
    text = duration(row.lease_left)
    low = row.lease_left is not None and row.lease_left < _LEASE_LOW
    return terminal.style(text, fg="red") if low else text
