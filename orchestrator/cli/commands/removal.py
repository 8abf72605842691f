"""`orch hide, delete`: take jobs out of sight, for a while or for good."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.commands.job_control import print_changes
from orchestrator.cli.display.formats import plural
from orchestrator.cli.selection import database, output_option, selectors, yes_option
from orchestrator.formatting import count
from orchestrator.units import is_number

if TYPE_CHECKING:
    from sqlalchemy import Engine


@click.command()
@selectors(required=True)
@click.option("--undo", is_flag=True, help="Show them again: by their numbers, or all of a sweep.")
@yes_option()
@output_option("name", "json")
def hide(*, selectors: tuple[str, ...], undo: bool, yes: bool, output: str | None) -> None:
    """Take ended jobs out of lists, laws and reports.

    Nothing is lost: orch show JOB still knows them, and --undo shows them again.
    """
    from orchestrator import queue

    with database() as (_, engine):
        ids = _hidden_too(engine, selectors) if undo else _found(engine, selectors)
        if len(ids) > 1:
            terminal.confirm(f"{'Show' if undo else 'Hide'} {plural(len(ids), 'job')}?", yes=yes)
        print_changes(queue.hide_jobs(engine, ids, hidden=not undo), output)


@click.command()
@selectors(required=True)
@yes_option()
@output_option("name", "json")
def delete(*, selectors: tuple[str, ...], yes: bool, output: str | None) -> None:
    """Delete jobs for good; orch gc removes their files.

    No list, law or report has them any more. Jobs that run are refused.

    Files, final autoencoders included, stay until `orch gc`. Their configs may be enqueued again.
    Fits of laws stay as they were stored: orch fit --remove takes them out.
    """
    from orchestrator import queue

    with database() as (_, engine):
        ids = _found(engine, selectors)
        terminal.confirm(f"Delete {_what_goes(engine, ids)}?", yes=yes)
        print_changes(queue.delete_jobs(engine, ids), output)
    if output is None:
        terminal.note("Their files stay until: orch gc")


def _found(engine: "Engine", selectors: Sequence[str]) -> list[int]:
    from orchestrator import results

    return results.find(engine, selectors)


def _hidden_too(engine: "Engine", selectors: Sequence[str]) -> list[int]:
    from orchestrator import results

    names = [name for name in selectors if not is_number(name)]
    return [*_found(engine, [one for one in selectors if is_number(one)]), *results.hidden_of(engine, names)]


def _what_goes(engine: "Engine", ids: Sequence[int]) -> str:
    """Say what goes: 3 jobs (2 succeeded, 1 failed): 2 trained SAEs with all scores, 1.2M trained tokens."""
    from orchestrator import results

    rows = results.jobs(engine, ids=ids, kind=None)
    states = ", ".join(f"{number} {state}" for state, number in Counter(row.state for row in rows).items())
    trained = [row for row in rows if row.kind == "train"]
    saes = sum(row.artifact_uri is not None for row in trained)
    tokens = count(sum(row.tokens_seen for row in trained))
    goes = [f"{plural(saes, 'trained SAE')} with all scores", f"{tokens} trained tokens"] if trained else []
    kinds = Counter(row.kind for row in rows)
    if kinds["evaluate"]:
        goes.append(f"the scores of {plural(kinds['evaluate'], 'evaluation')}")
    if kinds["lens"]:
        goes.append(f"{kinds['lens']} tuned lens{'es' if kinds['lens'] > 1 else ''}")
    return f"{plural(len(rows), 'job')} ({states}): {', '.join(goes)}"
