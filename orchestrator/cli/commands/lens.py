"""`orch lens`: train tuned lenses as jobs, bring them in, list and show them, remove those brought in."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.lens_tables import lens_columns, lens_lines
from orchestrator.cli.display.records import csv_text, record
from orchestrator.cli.display.tables import table
from orchestrator.cli.selection import database, output_option, tokens_given, yes_option
from orchestrator.formatting import whole

if TYPE_CHECKING:
    from orchestrator.config.lens.training import LensConfig
    from orchestrator.lenses import LensEntry
    from orchestrator.queue import LensAsked
    from orchestrator.settings import Settings


@click.group()
def lens() -> None:
    """Train tuned lenses, list and show them.

    A tuned lens maps the output of each block of a language model to where its final norm and head read: one affine
    map per block. A lens is named by its name, its job's number or the start of its content id.
    """


@lens.command()
@click.argument("subject", metavar="[SUBJECT]", required=False)
@click.option("--name", help="What to call it; without one, its job's number names it.")
@click.option("--config", "file", type=click.Path(path_type=Path),
              help="A YAML file of a lens job's keys: orch config schema --lens.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a model id.")
@click.option("--data", help="The text, as data.source of a sweep file; by default Python's standard library.")
@click.option("--tokens", metavar="TOKENS", callback=tokens_given, help="The budget: training.max_tokens.")
@click.option("--batch-tokens", metavar="TOKENS", callback=tokens_given, help="Tokens per step, whole contexts.")
@click.option("--lr", type=float, help="Adam's learning rate.")
@click.option("--seed", type=click.IntRange(0), help="Of the order of the text.")
@click.option("--again", is_flag=True, help="Train once more what is there already.")
@click.option("--dry-run", is_flag=True, help="Show the config that would be queued; write nothing.")
@click.option("--wait", "and_wait", is_flag=True, help="Then wait for the job, as `orch wait` does.")
@output_option("name", "json")
@click.pass_context
def train(
    ctx: click.Context, /, *, file: Path | None, name: str | None, again: bool, dry_run: bool, and_wait: bool,
    output: str | None, **options: Any,
) -> None:  # fmt: skip
    """Queue a job that trains a tuned lens of SUBJECT, a model id or folder; a worker runs it.

    The translators begin at zero, which is the logit lens, and are fitted by KL to the model's own next-token
    probabilities on the text, until the KL on held-out text no longer falls. Options on the command line go before
    those of the file. The same config is not queued twice.
    """
    from orchestrator import queue
    from orchestrator.sweep.lens_config import lens_config
    from orchestrator.sweep.yaml_source import parse_text, read_text

    with database() as (settings, engine):
        values: Any = {} if file is None else parse_text(read_text(file), str(file)).plain() or {}
        config = lens_config(values, options, settings=settings, where=str(file or ""))
        asked = queue.train_lens(engine, config, name=name, again=again, dry_run=dry_run)
        _print_asked(config, asked, output, dry_run=dry_run)
        if dry_run or asked.job_id is None:
            return
        _wake(settings, asked)
        if and_wait:
            from orchestrator.cli.commands.wait import wait_for

            ctx.exit(wait_for(engine, [asked.job_id]))
    if not output and asked.is_new:
        show = f"orch lens show {name or asked.job_id}"
        terminal.note(f"\nNext:  {'orch worker':<{len(show)}}   runs it\n       {show}   shows what it came to")


@lens.command("import")
@click.argument("folder", metavar="FOLDER")
@click.option("--subject", required=True, help="The language model that the lens is of: a model id or a folder.")
@click.option("--revision", help="Branch, tag or commit of a model id.")
@click.option("--name", help="What to call it; by default as its folder.")
@output_option("json", "name")
def import_lens(*, folder: str, subject: str, output: str | None, **options: Any) -> None:
    """Bring in a lens that the tuned-lens library wrote: FOLDER holds its config.json and params.pt.

    Its translator i is of the input of block i: the output of block l takes translator l + 1, and the last block none.
    A lens of another model, width, depth or revision is refused, and one that cannot be undone. Of the pickle tensors
    alone are read.
    """
    from orchestrator.cli.sae_worker import run_sae_worker
    from orchestrator.sweep.assignments import read_value

    options["subject"] = read_value("subject.model", subject, (Path.cwd(),))
    said = run_sae_worker("import-lens", folder, options)
    if output == "json":
        terminal.echo_json(terminal.envelope("lens-imported", [said]))
        return
    for line in [said["selector"]] if output == "name" else said["lines"]:
        terminal.echo(line)


@lens.command("list")
@output_option("wide", "json", "csv", "name")
def list_lenses(*, output: str | None) -> None:
    """List lenses: KL to the model's own probabilities on held-out text, in nats per token, and the logit lens' beside.

    Both are means over all layers but the last, where both are 0. WORST COND is the largest condition number of a
    layer's map: by so much a rounding may grow on the way back from lens space.
    """
    from orchestrator import lenses
    from orchestrator.lenses.lens_progress import so_far

    with database() as (settings, engine):
        rows = [_located(settings, row) for row in so_far(engine, lenses.entries(engine))]
    if output == "json":
        terminal.echo_json(terminal.envelope("lens", map(record, rows)))
    elif output == "csv":
        terminal.echo(csv_text([record(row) for row in rows]))
    elif output == "name":
        for row in rows:
            terminal.echo(row.label)
    elif rows:
        for line in table(rows, lens_columns(wide=output == "wide"), width=None if output else terminal.width()):
            terminal.echo(line)
    else:
        terminal.note("There is no lens yet. Train one: orch lens train SUBJECT")


@lens.command("show")
@click.argument("selector", metavar="LENS")
@output_option("json")
def show_lens(*, selector: str, output: str | None) -> None:
    """Show one lens: what it is of, and its KL, the logit lens' KL and its condition number at every layer."""
    from orchestrator import lenses, results
    from orchestrator.lenses.lens_progress import so_far

    with database() as (settings, engine):
        (found,) = so_far(engine, [lenses.named(engine, selector)])
        row = _located(settings, found)
        counts = results.convergence(engine, row.job_id) if row.job_id else []
    if output:
        terminal.echo_json(terminal.envelope("lens", [record(row) | {"convergence": [record(one) for one in counts]}]))
        return
    for line in lens_lines(row, counts, width=terminal.width()):
        terminal.echo(line)
    if row.job_id:
        terminal.note(f"\nMore: orch show {row.job_id} [--curve | --attempts | --events | --config]")


@lens.command()
@click.argument("selector", metavar="LENS")
@yes_option()
@output_option("name", "json")
def remove(*, selector: str, yes: bool, output: str | None) -> None:
    """Take a lens that was brought in out of the table; orch gc removes its folder.

    That of a job goes with its job: orch delete JOB.
    """
    from orchestrator import lenses

    with database() as (_, engine):
        row = lenses.named(engine, selector)
        terminal.confirm(f"Remove the lens {row.label}?", yes=yes)
        lenses.remove(engine, row.id)
    if output == "json":
        terminal.echo_json(terminal.envelope("lens-removed", [{"lens": row.label, "id": row.id}]))
    else:
        terminal.echo(row.label if output == "name" else f"Removed {row.label}")


def _print_asked(config: "LensConfig", asked: "LensAsked", output: str | None, *, dry_run: bool) -> None:
    if output == "json":
        terminal.echo_json(
            terminal.envelope("lens-train", [asked._asdict()]) | {"config": config.model_dump(mode="json")}
        )
        return
    if output == "name":
        terminal.echo(str(asked.job_id or ""))
        return
    what = f"lens of {config.subject.model} on {config.data.source}, at most {whole(config.training.max_tokens)} tokens"
    if not asked.is_new:
        terminal.echo(f"{what}: already there, job {asked.job_id}")
    elif dry_run:
        terminal.echo(f"{what}: would add 1 job")
    else:
        terminal.echo(f"{what}: added job {asked.job_id}")


def _wake(settings: "Settings", asked: "LensAsked") -> None:
    from orchestrator.dispatch import NOT_WOKEN, wake

    if asked.is_new and asked.job_id is not None and not wake(settings, [asked.job_id]):
        terminal.warn(NOT_WOKEN, f"The job is queued all the same: workers look every {settings.poll:g} s.")


def _located(settings: "Settings", row: "LensEntry") -> "LensEntry":
    """Return a lens with the folder where it is now: that of the artifacts may have moved since."""
    return replace(row, uri=row.uri and settings.artifact(row.uri))
