"""`orch sae`: the table of SAEs; bring them in, check them, give them to other libraries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.records import csv_text, plain
from orchestrator.cli.display.sae_table import convention_lines, sae_columns, sae_lines
from orchestrator.cli.display.tables import table
from orchestrator.cli.sae_worker import run_sae_worker
from orchestrator.cli.selection import database, output_option, yes_option
from orchestrator.config.sites import SITES
from orchestrator.errors import StateError

if TYPE_CHECKING:
    from orchestrator.saes import SaeEntry

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_METAVAR = "JOB|sae:NAME|SWEEP|FOLDER..."


@click.group()
def sae() -> None:
    """List trained SAEs, bring others in, check them, give them to other libraries.

    An SAE is named by its job's number, by sae: with its name or number, and all of a sweep by the sweep's name.
    """


@sae.command("list")
@click.argument("selectors", metavar="[JOB|sae:NAME|SWEEP]...", nargs=-1)
@output_option("wide", "json", "csv", "name")
def list_saes(*, selectors: tuple[str, ...], output: str | None) -> None:
    """List SAEs: what they are, what they read, and how well they were measured to reconstruct it.

    FVU is of the vectors as each SAE normalises them, L0 how many latents are active per token. Only `verified` ones
    were seen to reconstruct their subject's activations as they should.
    """
    rows = _rows(selectors)
    if output in {"json", "csv"}:
        records = [plain(row.flat()) for row in rows]
        if output == "json":
            terminal.echo_json(terminal.envelope("sae", records))
        else:
            terminal.echo(csv_text(records))
    elif output == "name":
        for row in rows:
            terminal.echo(row.label)
    elif rows:
        for line in table(rows, sae_columns(wide=output == "wide"), width=None if output else terminal.width()):
            terminal.echo(line)
    else:
        terminal.note("There is no SAE yet. Train some: orch demo; or bring one in: orch sae import FOLDER")


@sae.command()
@click.argument("selector", metavar="JOB|sae:NAME")
@output_option("json")
def show(*, selector: str, output: str | None) -> None:
    """Show everything known of an SAE."""
    rows = _rows([selector])
    if output == "json":
        terminal.echo_json(terminal.envelope("sae", [plain(row.flat()) for row in rows]))
        return
    for number, row in enumerate(rows):
        if number:
            terminal.echo()
        for line in sae_lines(row):
            terminal.echo(line)


def _read_here(key: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return how an option is read that a sweep file has as `key`: a folder as its absolute path."""

    def read(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
        from orchestrator.sweep.assignments import read_value

        found: str | None = read_value(key, value, (Path.cwd(),))
        return found

    return read


def _subject_options(command: _Decorated) -> _Decorated:
    """Give a command the options that say which activations of which text an SAE is measured on."""
    for option in (
        click.option("--device", help="Where to compute: cpu, cuda or cuda:N."),
        click.option("--tokens", type=click.IntRange(4096),
                     help="Measure on so many tokens (default: 16,384; of a job's SAE, its held-out tokens)."),
        click.option("--context", type=click.IntRange(2), help="Tokens per context, where its files do not say."),
        click.option("--data", callback=_read_here("data.source"),
                     help="The text: as data.source of a sweep file. Best what the SAE was trained on."),
        click.option("--hook", help="The module whose output it reads, by its name in the model."),
        click.option("--site", type=click.Choice(sorted(SITES)), help="What it reads at that block."),
        click.option("--layer", type=click.IntRange(0), help="The block it reads, counted from 0."),
        click.option("--revision", help="Branch, tag or commit of the subject."),
        click.option("--subject", callback=_read_here("subject.model"),
                     help="The language model: a hub name or a folder."),
    ):  # fmt: skip
        command = option(command)
    return command


@sae.command("import")
@click.argument("source", metavar="FOLDER|FILE|HUB_ID")
@click.option("--name", help="Its name in the table; by default that of its folder.")
@click.option("--format", "format_", help="The format of its files, where they leave it open.")
@click.option(
    "--convention", help="Which of several readings of its files is meant: a name of the table that is shown."
)
@_subject_options
@output_option("json", "name")
def import_sae(*, source: str, output: str | None, **options: Any) -> None:
    """Bring in an SAE of another library: read it, try it on its subject's activations, enter it.

    It becomes `verified` when fvu and L0 agree with what its files state or, where they state nothing, are those of a
    trained SAE. Where another reading of the files (bias subtracted or not, a scale folded or not) fits better, nothing
    is entered, and a table shows what each reading comes to. Without its subject it is entered as `unverified`.

    No code is run: safetensors, npz without pickle, and .pt files of tensors alone are read.
    """
    said = run_sae_worker("import", source, options)
    _tell(said, output)


@sae.command()
@click.argument("selectors", metavar=_METAVAR, nargs=-1, required=True)
@_subject_options
@output_option("json")
def verify(*, selectors: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Measure SAEs on their subjects' activations again, and say whether they are what they should be.

    Exit code 4 where one is refused. Of a folder nothing is stored: orch sae import does that.
    """
    refused = []
    for meant in _meant(selectors):
        said = run_sae_worker("verify", meant, options)
        _tell(said, output)
        refused += [said["selector"]] if said["state"] == "refused" else []
    if refused:
        is_one = len(refused) == 1
        raise StateError(
            f"{', '.join(refused)} {'is' if is_one else 'are'} refused",
            hint=f"Look at what is known of {'it' if is_one else 'the first'}: orch sae show {refused[0]}",
        )


@sae.command()
@click.argument("selector", metavar="JOB|sae:NAME|FOLDER")
@click.argument("folder", metavar="NEW_FOLDER", type=click.Path())
@click.option("--format", "format_", default="orch", show_default=True,
              help="orch, saelens, sparsify, dictionary_learning, openai or mlsae.")  # fmt: skip
@click.option("--layer", type=click.IntRange(0), help="Of an SAE of several layers: as one of this layer.")
@click.option("--push", metavar="ORG/NAME", help="Upload the folder to this hub repository.")
@output_option("json", "name")
def export(*, selector: str, folder: str, output: str | None, **options: Any) -> None:
    """Write an SAE to NEW_FOLDER as another library reads it, with a card that says what it is.

    A FOLDER of any known format is translated, without entering it. What a format cannot hold is refused, never
    dropped.
    """
    meant = _meant([selector])
    if len(meant) > 1:
        raise click.UsageError(f"{selector!r} means {len(meant)} SAEs: name one of them. orch sae list {selector}")
    _tell(run_sae_worker("export", meant[0], {"folder": folder, **options}), output)


@sae.command()
@click.argument("selectors", metavar="sae:NAME...", nargs=-1, required=True)
@yes_option()
@output_option("name", "json")
def remove(*, selectors: tuple[str, ...], yes: bool, output: str | None) -> None:
    """Take SAEs that were brought in out of the table, their files and their scores with them.

    Those of jobs go with their jobs: orch delete JOB.
    """
    import shutil

    from orchestrator import queue, results

    with database() as (settings, engine):
        rows = results.find_saes(engine, selectors)
        terminal.confirm(f"Remove {', '.join(row.label for row in rows)}, with their files?", yes=yes)
        for row in rows:
            queue.remove_sae(engine, row.id)
            shutil.rmtree(Path(settings.artifact(row.uri)).parent, ignore_errors=True)
    if output == "json":
        terminal.echo_json(terminal.envelope("sae-removed", [{"selector": row.label, "id": row.id} for row in rows]))
        return
    for row in rows:
        terminal.echo(row.label if output == "name" else f"Removed {row.label}")


def _rows(selectors: Sequence[str]) -> "list[SaeEntry]":
    from dataclasses import replace

    from orchestrator import results, saes

    with database() as (settings, engine):
        rows = results.find_saes(engine, selectors) if selectors else saes.entries(engine)
        return [replace(row, uri=settings.artifact(row.uri)) for row in rows]


def _meant(selectors: Sequence[str]) -> list[str]:
    """Return SAEs as the worker's process is told of them: by number, or as the path of a folder or file."""
    from orchestrator.results.selectors import is_path

    return [
        meant
        for selector in selectors
        for meant in ([selector] if is_path(selector) else [f"sae:{row.id}" for row in _rows([selector])])
    ]


def _tell(said: dict[str, Any], output: str | None) -> None:
    """Print what the worker's process came to.

    Raises:
        StateError: it refused.
    """
    if output == "json":
        terminal.echo_json(terminal.envelope("sae-work", [said]))
    elif output != "name":
        for line in (*convention_lines(said.get("conventions", [])), *said.get("lines", [])):
            terminal.echo(line)
    if "refused" in said:
        raise StateError(said["refused"], hint=said["hint"])
    if output == "name":
        terminal.echo(said["selector"])
