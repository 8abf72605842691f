"""`orch queue`: the queue as a whole, in figures; paused, and let go on."""

from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import clock, plural
from orchestrator.cli.display.queue_view import state_counts
from orchestrator.cli.display.records import record
from orchestrator.cli.selection import database, output_option
from orchestrator.formatting import count, duration

if TYPE_CHECKING:
    from orchestrator.results import QueueStats


@click.group()
def queue() -> None:
    """Show figures of the whole queue; pause and resume it."""


@queue.command()
@output_option("json")
def stats(*, output: str | None) -> None:
    """Show how much waits and runs, and what the attempts of the last hour came to."""
    from orchestrator import results

    with database() as (_, engine):
        found = results.stats(engine)
    if output == "json":
        terminal.echo_json(terminal.envelope("queue", [record(found)]))
        return
    for name, text in _lines(found):
        terminal.echo(f"{name:<11}  {text}".rstrip())


@queue.command()
def pause() -> None:
    """Let no worker claim anything; what runs goes on. `orch queue resume` opens the queue again."""
    from orchestrator.queue import pause_queue

    with database() as (_, engine):
        was_open = pause_queue(engine)
    terminal.echo("paused" if was_open else "already paused")
    terminal.note("No further job starts; what runs goes on. To open it again: orch queue resume")


@queue.command()
def resume() -> None:
    """Let workers claim again."""
    from orchestrator.dispatch import MAX_MESSAGES, wake
    from orchestrator.queue import resume_queue, waiting

    with database() as (settings, engine):
        was_paused = resume_queue(engine)
        is_told = wake(settings, waiting(engine, limit=MAX_MESSAGES) if settings.broker_url else [])
    terminal.echo("open" if was_paused else "already open")
    if not is_told:
        terminal.warn("the broker does not answer.", f"Workers look by themselves every {settings.poll:g} s.")


def _lines(found: "QueueStats") -> list[tuple[str, str]]:
    devices = ", ".join(f"{number} on {device}" for device, number in found.running.items())
    open_or_not = "open" if found.paused_at is None else f"paused since {clock(found.paused_at)}"
    oldest = found.oldest_queued_age
    evaluations = "  ".join(state_counts(found.evaluations))
    lenses = "  ".join(state_counts(found.lenses))
    return [
        ("queue", open_or_not),
        ("jobs", "  ".join(state_counts(found.jobs)) or "none"),
        *([("evaluations", evaluations)] if evaluations else []),
        *([("lenses", lenses)] if lenses else []),
        ("oldest", "none is queued" if oldest is None else f"queued for {duration(oldest)}"),
        ("running", f"{devices or 'nothing'}, {count(found.tokens_per_second)} tokens/s"),
        ("last hour", _attempts(found.last_hour, found.last_hour["tokens"])),
        ("ever", _attempts(found.attempts, found.tokens_trained)),
    ]


def _attempts(ended: dict[str, int], tokens: int) -> str:
    words = {"results": "result", "evaluations": "evaluation", "lenses": "lens job"}
    words |= {"failures": "failure", "preemptions": "preemption"}
    always = ("results", "failures", "preemptions")
    parts = [plural(ended[kind], word) for kind, word in words.items() if ended[kind] or kind in always]
    return ", ".join([*parts, f"{ended['lost']} lost", f"{count(tokens)} tokens"])
