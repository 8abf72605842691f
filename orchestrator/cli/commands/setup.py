"""`orch init, config, completion`: settings, the schema of configs, and the shell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import plural
from orchestrator.cli.display.tables import Column, table
from orchestrator.cli.selection import database_if_there
from orchestrator.errors import StorageError

if TYPE_CHECKING:
    from orchestrator.settings import Settings

_EMBEDDED = """\
# Where orch finds and keeps things. Environment variables (ORCH_HOME, ORCH_DATABASE_URL, ...) win over this file.
# What is in force, and why: orch config show --origin

home = ".orch"            # data folder: databases, token files, checkpoints, logs

# device = "auto"         # auto, cpu, cuda or cuda:N
# checkpoint_seconds = 60 # wall seconds between two checkpoints of a job

# Without these, everything is SQLite in the data folder, and workers poll. To use servers: orch init --service
# database_url = "postgresql+psycopg://user:password@host/orch"
# broker_url = "redis://host:6379/0"
# tracking_url = "http://host:5000"
"""
_SERVICE = """\
# Where orch finds and keeps things. Environment variables (ORCH_HOME, ORCH_DATABASE_URL, ...) win over this file:
# keep passwords there. What is in force, and why: orch config show --origin

home = ".orch"            # data folder: token files, logs; each host may have its own
# artifacts = "/shared"   # checkpoints and finished SAEs: one folder, under one path, for the workers of all hosts
database_url = "postgresql+psycopg://orch@127.0.0.1:5432/orch"
broker_url = "redis://127.0.0.1:6379/0"   # wakes workers; it may be away, they also look every 30 s
tracking_url = "http://127.0.0.1:5000"    # the MLflow server

# device = "auto"         # auto, cpu, cuda or cuda:N
# checkpoint_seconds = 60 # wall seconds between two checkpoints of a job
# lease_seconds = 90      # a worker silent for this long (+ grace_seconds) loses its job to another
"""


@click.command()
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--embedded/--service", default=True, help="SQLite in the data folder (the default), or servers.")
def init(*, folder: Path, embedded: bool) -> None:
    """Write orch.toml and make the database.

    In DIR, or where you stand. What is there already is left as it is.
    """
    from orchestrator.settings import FILE_NAME, load, place_of

    file = folder / FILE_NAME
    if file.exists():
        terminal.note(f"{file} is there already and stays as it is.")
    else:
        _write(file, _EMBEDDED if embedded else _SERVICE)
        terminal.note(f"Wrote {file}")
    settings = load(start=folder)
    if settings.embedded:
        from orchestrator.database.schema import open_database

        open_database(settings).dispose()
        terminal.note(f"The database is {place_of(settings.database)}")
    terminal.note(_next_steps(settings, folder))


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise StorageError(
            f"{file}: {error.strerror}", hint="Name a folder that may be written: orch init DIR"
        ) from None


def _next_steps(settings: "Settings", folder: Path) -> str:
    there = "" if folder.resolve() == Path.cwd() else f"       cd {folder}\n"
    steps = ["orch db upgrade     makes the tables", "orch doctor         checks the servers"]
    if settings.embedded:
        steps = ["orch demo           trains a first sweep"]
    steps += ["orch enqueue FILE   queues a sweep", "orch worker         trains what is queued"]
    return "\nNext:\n" + there + "\n".join(f"       {step}" for step in steps)


@click.group()
def config() -> None:
    """Show settings and the config schema; check sweep files."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print for a program instead of a person.")
def show_settings(*, origin: bool, output: str | None) -> None:
    """Show the settings in force; passwords are hidden."""
    from orchestrator.settings import resolve

    rows = [(name, _shown(value), source) for name, (value, source) in resolve().items()]
    if output:
        items = [{"name": name, "value": value, "origin": source} for name, value, source in rows]
        terminal.echo_json(terminal.envelope("settings", items))
        return
    columns: list[Column[tuple[str, Any, str]]] = [
        Column("SETTING", lambda row: row[0]),
        Column("VALUE", lambda row: str(row[1]) if row[1] != "" else '""'),
    ]
    if origin:
        columns.append(Column("ORIGIN", lambda row: row[2]))
    for line in table(rows, columns, width=None):
        terminal.echo(line)


@config.command()
@click.option("--json", "as_json", is_flag=True, help="As a JSON schema, for a program.")
@click.option("--evaluation", is_flag=True, help="Of evaluate: in a sweep file, and of orch evaluate --config.")
@click.option("--lens", is_flag=True, help="Of a lens job: of orch lens train --config.")
def schema(*, as_json: bool, evaluation: bool, lens: bool) -> None:
    """Show every key of a job's config: what it takes, its default, what it means."""
    from orchestrator.cli.display.config_keys import key_lines, plan_lines
    from orchestrator.config.evaluation.evaluation import EvaluationPlan
    from orchestrator.config.job import JobConfig
    from orchestrator.config.lens.training import LensConfig

    if evaluation:
        found = EvaluationPlan.model_json_schema()
        for line in (
            [json.dumps(found, indent=2, ensure_ascii=False)] if as_json else plan_lines(found, terminal.width())
        ):
            terminal.echo(line)
        return
    keys = (LensConfig if lens else JobConfig).model_json_schema()
    if as_json:
        terminal.echo(json.dumps(keys, indent=2, ensure_ascii=False))
        return
    for line in key_lines(keys, width=terminal.width()):
        terminal.echo(line)
    if not lens:
        terminal.note("What a sweep file's evaluate: takes: orch config schema --evaluation")


@config.command()
def path() -> None:
    """Print which orch.toml is in force; nothing when there is none."""
    from orchestrator.settings import nearest_file

    found = nearest_file(Path.cwd())
    if found:
        terminal.echo(str(found))
    else:
        terminal.note("No orch.toml here or above: the defaults are in force. To write one: orch init")


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
def validate(*, file: Path, overrides: tuple[str, ...]) -> None:
    """Check a sweep file, with overrides; nothing is stored.

    What `orch enqueue` refuses is refused here. The database is opened only where the file names a lens.
    """
    from orchestrator.enqueueing import doubts, read_sweep, with_lenses
    from orchestrator.settings import load

    sweep = read_sweep(file, overrides, settings=load())
    if any(config.sae.lens is not None for config in sweep.configs):
        with database_if_there() as engine:
            with_lenses(engine, sweep)
    for doubt in doubts(sweep, file, settings=load()):
        terminal.warn(doubt)
    terminal.echo(f"{file}: sweep {sweep.name} with {plural(len(sweep.configs), 'job')}, all valid")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
    bash: eval "$(orch completion bash)"       in ~/.bashrc
    zsh:  eval "$(orch completion zsh)"        in ~/.zshrc
    fish: orch completion fish > ~/.config/fish/completions/orch.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found
    terminal.echo(found(ctx.find_root().command, {}, "orch", "_ORCH_COMPLETE").source())


def _shown(value: Any) -> Any:
    from orchestrator.masking import mask

    return value if isinstance(value, int | float) else mask(str(value))
