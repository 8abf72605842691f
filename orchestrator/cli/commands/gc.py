"""`orch gc`: remove what nobody needs any more."""

from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import plural, size
from orchestrator.cli.selection import database, output_option, time_span, yes_option

if TYPE_CHECKING:
    from orchestrator.storage import garbage

LINES_SHOWN = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--cache", "all_caches", is_flag=True, help="Every activation cache that no process uses, however young.")
@click.option(
    "--older-than", metavar="TIME", default="7d", show_default=True, callback=time_span,
    help="Age at which unused caches and tokens go, checkpoints of failed and cancelled jobs, and ended workers.",
)  # fmt: skip
@yes_option()
@output_option("name", "json")
def gc(*, dry_run: bool, all_caches: bool, older_than: float, yes: bool, output: str | None) -> None:
    """Remove what nobody needs any more.

    Checkpoints of jobs that have ended (the final autoencoder stays), activation caches over their quota or long
    unused, token files of no job that is not over, what was left half-written, and the names of workers that ended
    long ago. Nothing that a job needs which runs, waits or is paused.
    """
    from orchestrator.queue import workers
    from orchestrator.storage import garbage

    with database() as (settings, engine):
        found = garbage.find(engine, settings, older_than=older_than, all_caches=all_caches)
        if not dry_run and any(item.kind != "temporary" for item in found):
            if not yes:
                _print(found, None, to_person=True)
            total = sum(item.bytes for item in found)
            terminal.confirm(f"Delete {plural(len(found), 'thing')}, {size(total)}?", yes=yes)
        gone = found if dry_run else garbage.remove(engine, found)
        forgotten = 0 if dry_run else workers.forget(engine, older_than=older_than)
    if forgotten:
        terminal.note(f"{plural(forgotten, 'worker')} that ended or fell silent long ago forgotten.")
    _print(gone, output)
    if output is None:
        verb = "would go" if dry_run else "gone"
        terminal.echo(f"{plural(len(gone), 'thing')}, {size(sum(item.bytes for item in gone))} {verb}.")


def _print(items: "list[garbage.Item]", output: str | None, *, to_person: bool = False) -> None:
    if output == "json":
        values = ({"kind": i.kind, "path": str(i.path), "bytes": i.bytes, "why": i.why} for i in items)
        terminal.echo_json(terminal.envelope("garbage", values))
        return
    say = terminal.note if to_person else terminal.echo
    shown = items if output else items[:LINES_SHOWN]
    for item in shown:
        say(str(item.path) if output else f"{item.kind:<10}  {size(item.bytes):>8}  {item.path}  ({item.why})")
    if len(shown) < len(items):
        say(f"… and {len(items) - len(shown)} more")
