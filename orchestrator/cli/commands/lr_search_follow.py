"""`orch plan --lr`: print what is known of the learning rate of each size, and what to try next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.commands.plan_file import write
from orchestrator.cli.display.formats import plural, ratio
from orchestrator.cli.display.tables import Column, table
from orchestrator.errors import StateError
from orchestrator.formatting import NONE

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.lr_search import SearchScope, SearchStep
    from orchestrator.scaling.plan.lr_search import Found, Step, Tried
    from orchestrator.settings import Settings

_SIGNS = {"waiting": "…", "converged": "", "unconverged": "~", "diverged": "!", "given up": "–", "failed": "✗"}


def search(settings: "Settings", engine: "Engine", scope: "SearchScope", *, follow: bool, output: str | None) -> None:
    """Print what is known and what comes next; with `follow`, do it until each size is bracketed.

    Raises:
        NotFound: an unknown sweep, or one without a job.
        ConfigError: jobs of several subjects.
        StateError: the search cannot go on at some size: which, and what to do.
    """
    from orchestrator.lr_search import propose

    if follow:
        _follow(settings, engine, scope)
    found = propose(engine, scope)
    _show(found.step, output)
    if not follow:
        _offer(engine, scope, found, output)
        return
    troubles = {size: known.trouble for size, known in found.step.found.items() if known.trouble}
    for (n_latents, k), trouble in troubles.items():
        first, _, hint = trouble.partition(": ")
        raise StateError(f"the search at n_latents = {n_latents}, k = {k} cannot go on: {first}", hint=hint)


def _follow(settings: "Settings", engine: "Engine", scope: "SearchScope") -> None:
    """Let the search run on the queue, and print what becomes of each rate."""
    from orchestrator import lr_search, results

    if not results.registered_workers(engine):
        terminal.note("No worker is at work. Start one with: orch worker")
    printed: dict[tuple[int, float | None], str] = {}
    for step, cancelled in lr_search.follow(settings, engine, scope):
        for change in cancelled:
            terminal.note(f"job {change.job_id}  cannot catch up: {change.effect}")
        for (n_latents, k), found in step.found.items():
            for one in found.tried:
                if printed.get((one.job_id, one.lr)) != one.outcome:
                    printed[one.job_id, one.lr] = one.outcome
                    terminal.note(f"job {one.job_id}  n={n_latents} k={k} lr={_rate(one.lr)}  {one.outcome}")


def _offer(engine: "Engine", scope: "SearchScope", found: "SearchStep", output: str | None) -> None:
    step = found.step
    if output != "json":
        for job_id in step.cancel:
            terminal.note(f"Job {job_id} cannot catch up any more: orch cancel {job_id}")
        if step.is_done:
            terminal.note("The search has ended: nothing is left to try.")
        elif not step.enqueue:
            terminal.note("Nothing to add before a job has ended.")
        else:
            terminal.note(f"{plural(len(step.enqueue), 'job')} to add; to do all of it: the same, with --follow")
    head = [
        f"Written by: orch plan {' '.join(scope.sweeps)} --lr",
        "The next learning rates to try, by factors of two.",
    ]
    write(engine, scope.sweeps[0], found.configs, head=head, output=output)


def _show(step: "Step", output: str | None) -> None:
    added: dict[tuple[int, int], list[float | None]] = {}
    for rate in step.enqueue:
        added.setdefault((rate.n_latents, rate.k), []).append(rate.lr)
    if output == "json":
        items = (found_record(size, found, added.get(size, [])) for size, found in step.found.items())
        terminal.echo_json(terminal.envelope("rates", items) | {"cancel": list(step.cancel)})
        return
    columns: list[Column[tuple[tuple[int, int], Found]]] = [
        Column("N", lambda row: str(row[0][0]), right=True),
        Column("K", lambda row: str(row[0][1]), right=True),
        Column("LARGEST", lambda row: _rate(row[1].largest_converging, NONE), right=True),
        Column("BEST", lambda row: _rate(row[1].best, NONE), right=True),
        Column("NEXT", lambda row: ", ".join(map(_rate, added.get(row[0], []))) or NONE, right=True),
        Column("STATE", lambda row: row[1].trouble or ("bracketed" if row[1].is_bracketed else "open")),
        Column("FVU BY LR", lambda row: "  ".join(map(_tried, row[1].tried)), weight=3),
    ]
    say = terminal.note if output == "-" else terminal.echo
    for line in table(list(step.found.items()), columns, width=terminal.width()):
        say(line)
    terminal.note(
        "\nLARGEST: the largest lr that converges. ~ not converged  ! diverged  – given up  … not ended  ✗ failed"
    )


def found_record(size: tuple[int, int], found: "Found", added: Sequence[float | None]) -> dict[str, Any]:
    """Return what is known of one size for a program."""
    return {
        "n_latents": size[0], "k": size[1], "largest_converging": found.largest_converging, "best": found.best,
        "is_bracketed": found.is_bracketed, "trouble": found.trouble or None,
        "next": ["auto" if lr is None else lr for lr in added], "tried": [one._asdict() for one in found.tried],
    }  # fmt: skip


def _tried(one: "Tried") -> str:
    told = ratio(one.fvu) if one.fvu is not None and one.outcome != "diverged" else ""
    return f"{_rate(one.lr)}:{told}{_SIGNS[one.outcome]}"


def _rate(lr: float | None, without: str = "auto") -> str:
    return without if lr is None else f"{lr:.4g}"
