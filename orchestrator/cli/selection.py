"""What commands share before they act: the database in force, and jobs named by id or sweep."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli import terminal
from orchestrator.errors import OrchError
from orchestrator.job_states import STATES
from orchestrator.masking import clean
from orchestrator.units import row_id, token_count

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from sqlalchemy import Engine

    from orchestrator.results import JobRow
    from orchestrator.settings import Settings

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


@contextmanager
def database() -> "Iterator[tuple[Settings, Engine]]":
    """Open the database in force, with its settings.

    Raises:
        StorageError: out of reach, or of an old schema.
    """
    from orchestrator.database.schema import open_database
    from orchestrator.settings import load

    settings = load()
    engine = open_database(settings)
    try:
        yield settings, engine
    finally:
        engine.dispose()


@contextmanager
def database_if_there() -> "Iterator[Engine | None]":
    """Open the database in force for what only looks something up; None where there is none yet: none is made.

    Raises:
        StorageError: out of reach, or of an old schema.
    """
    from orchestrator.database import schema
    from orchestrator.settings import load

    settings = load()
    if settings.embedded and schema.current(settings) is None:
        yield None
        return
    with database() as (_, engine):
        yield engine


def job_rows(engine: "Engine", selectors: Sequence[str]) -> "list[JobRow]":
    """Return the jobs of every kind that ids and sweep names stand for.

    Raises:
        NotFound: nothing of that name, with near ones.
    """
    from orchestrator import results

    return results.jobs(engine, ids=results.find(engine, selectors), kind=None)


def warn_of_left_out(engine: "Engine", sweeps: Sequence[str]) -> None:
    """Say of each of several sweeps that trains no SAE that it is left out of what is fitted or drawn, and why."""
    from orchestrator import results

    for why in results.left_out(engine, sweeps):
        terminal.warn(f"left out: {why.message}", why.hint)


def selectors(*, required: bool) -> Callable[[_Decorated], _Decorated]:
    """Give a command its JOB|SWEEP arguments."""
    metavar = "JOB|SWEEP..." if required else "[JOB|SWEEP]..."
    return click.argument("selectors", metavar=metavar, nargs=-1, required=required, shell_complete=_complete)


def job_argument() -> Callable[[_Decorated], _Decorated]:
    """Give a command its one JOB argument."""
    return click.argument("job", metavar="JOB", type=_JobId(), shell_complete=_complete)


class _JobId(click.ParamType[int]):
    """The number of a job."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number = row_id(value)
        if not number:
            self.fail(f"{value!r} is no job. A job is a number: orch status lists them, with their sweeps.", param, ctx)
        return number


def job_choice_options(command: _Decorated) -> _Decorated:
    """Give a command the options that say which jobs of its sweeps are meant: the fields of `JobChoice`."""
    for option in (
        click.option("--activation", help="Only SAEs of this activation."),
        click.option("--data", help="Only jobs of this text."),
        click.option("--layer", type=int, help="Only jobs read at this layer; SAEs of several as they are at it."),
        click.option("--hook", help="Only jobs read at this hook point."),
        click.option("--subject", help="Only jobs of this subject."),
    ):
        command = option(command)
    return command


def output_option(*formats: str) -> Callable[[_Decorated], _Decorated]:
    """Give a command -o with the formats it knows."""
    return click.option("-o", "--output", type=click.Choice(formats), help="Print for a program instead of a person.")


def yes_option() -> Callable[[_Decorated], _Decorated]:
    """Give a command -y."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def time_span(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of a time span: 90, 90s, 10m, 2h, 1d or 2 weeks."""
    from orchestrator.units import span_seconds

    if value is None:
        return None
    seconds = span_seconds(value)
    if seconds is None:
        raise click.BadParameter(
            f"{value!r} is no time span: write 90s, 10m, 2h, 1d or '2 weeks'.", ctx=ctx, param=param
        )
    return seconds


def tokens_given(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a number of tokens, as `token_count` reads it."""
    tokens = None if value is None else token_count(value)
    if value is not None and tokens is None:
        raise click.BadParameter(
            f"{value!r} is no number of tokens: write 50M, 500k or 50_000_000.", ctx=ctx, param=param
        )
    return tokens


def states_option() -> Callable[[_Decorated], _Decorated]:
    """Give a command -s, a list of states such as running,queued."""
    return click.option(
        "-s", "--state", "states", metavar="STATE,...", callback=_check_states, shell_complete=_complete_states,
        help=f"Only jobs in these states: {', '.join(STATES)}.",
    )  # fmt: skip


def _check_states(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    from difflib import get_close_matches

    given = tuple(part.strip() for part in value.split(",")) if value is not None else None
    for state in given or ():
        if state not in STATES:
            near = get_close_matches(state, STATES, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else f" States: {', '.join(STATES)}."
            raise click.BadParameter(f"{state!r} is not a state.{meant}", ctx=ctx, param=param)
    return given


def _complete_states(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Complete the last state of the list."""
    from click.shell_completion import CompletionItem

    head, comma, last = incomplete.rpartition(",")
    return [CompletionItem(head + comma + state) for state in STATES if state.startswith(last)]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Offer sweep names and job ids; where the database cannot be read, offer nothing."""
    from click.shell_completion import CompletionItem

    try:
        names, rows = _known()
    except OrchError:
        return []
    jobs = [CompletionItem(str(row.id), help=clean(f"{row.sweep} {row.state}", lines=False)) for row in rows]
    offered = (
        jobs
        if param.name == "job"
        else [*(CompletionItem(clean(name, lines=False), help="sweep") for name in names), *jobs]
    )
    return [item for item in offered if item.value.startswith(incomplete)]


def _known() -> "tuple[list[str], list[JobRow]]":
    from orchestrator import results
    from orchestrator.database import schema
    from orchestrator.settings import load

    if schema.current(load()) != schema.HEAD:  # completion creates and upgrades nothing
        return [], []
    with database() as (_, engine):
        return [sweep.name for sweep in results.sweeps(engine)], results.jobs(engine, limit=200, kind=None)
