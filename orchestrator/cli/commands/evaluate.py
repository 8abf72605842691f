"""`orch evaluate`: queue jobs that measure what SAEs are good for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import plural
from orchestrator.cli.job_filter import where_of
from orchestrator.cli.selection import database, output_option, tokens_given
from orchestrator.formatting import jobs_named, whole

if TYPE_CHECKING:
    from orchestrator.evaluation.asking import Evaluations
    from orchestrator.settings import Settings

_LINES_SHOWN = 20


@click.command()
@click.argument("selectors", metavar="JOB|sae:NAME|SWEEP...", nargs=-1, required=True)
@click.option("--metrics", metavar="FAMILY,...", help="Metric families: orch config schema --evaluation lists them.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="A YAML file of what to measure, and how.")
@click.option("--tokens", metavar="TOKENS", callback=tokens_given,
              help="Measure on so many, the last of the text; by default as many as training held out.")  # fmt: skip
@click.option("--data", help="Another text, as data.source of a sweep file; by default what they were trained on.")
@click.option("--across-layers", is_flag=True, help="At every layer of their site, not only where they were trained.")
@click.option("--where", metavar="KEY=VALUE[,...]", multiple=True, help="Only SAEs of jobs with this: sae.k=8,16.")
@click.option("--again", is_flag=True, help="Measure once more what is there already.")
@click.option("--dry-run", is_flag=True, help="Show what would be queued; write nothing.")
@click.option("--wait", "and_wait", is_flag=True, help="Then wait for the jobs, as `orch wait` does.")
@output_option("name", "json")
@click.pass_context
def evaluate(
    ctx: click.Context, *, selectors: tuple[str, ...], metrics: str | None, file: Path | None, tokens: int | None,
    data: str | None, across_layers: bool, where: tuple[str, ...], again: bool, dry_run: bool, and_wait: bool,
    output: str | None,
) -> None:  # fmt: skip
    """Queue jobs that measure what SAEs are good for, one for each SAE; workers run them.

    SAEs are named by their jobs' numbers, by sae: with a name or number, and all of a sweep by its name. What is
    measured already, or queued, is not queued again. Options on the command line go before those of the file.
    """
    from orchestrator.evaluation.asking import plan_of, request_evaluations
    from orchestrator.sweep.yaml_source import parse_text, read_text

    content = None if file is None else parse_text(read_text(file), str(file)).plain() or {}
    named = [] if metrics is None else [part.strip() for part in metrics.split(",")]
    at = "all" if across_layers else None
    plan = plan_of(content, metrics=named, tokens=tokens, source=data, at_layers=at, where=str(file or ""))
    with database() as (settings, engine):
        found = request_evaluations(
            engine, settings, selectors, plan, where=where_of(where), again=again, dry_run=dry_run
        )
        _print(found, output, dry_run=dry_run)
        if dry_run:
            return
        _wake(settings, found)
        if and_wait:
            from orchestrator.cli.commands.wait import wait_for

            ctx.exit(wait_for(engine, found.job_ids))
    if not output and found.added:
        terminal.note("\nNext:  orch worker         runs them\n       orch results        shows what was measured")


def _print(found: "Evaluations", output: str | None, *, dry_run: bool) -> None:
    if output == "json":
        envelope = terminal.envelope("evaluate", (one._asdict() for one in found.asked))
        counts: dict[str, Any] = {"added": 0 if dry_run else len(found.added), "there": len(found.there)}
        terminal.echo_json(
            envelope | counts | {"in_training": found.in_training, "plan": found.plan.model_dump(mode="json")}
        )
        return
    if output == "name":
        for one in found.added:
            terminal.echo(one.label if dry_run else str(one.job_id))
        return
    for one in found.refused[:_LINES_SHOWN]:
        terminal.warn(f"{one.label} cannot be evaluated: {one.refused}.")
    if len(found.refused) > _LINES_SHOWN:
        terminal.warn(f"nor can {len(found.refused) - _LINES_SHOWN} others.")
    number = len(found.added)
    added = "would add" if dry_run else "added"
    names = (
        f" ({jobs_named([one.job_id for one in found.added if one.job_id], most=4)})" if number and not dry_run else ""
    )
    there = f", already there {len(found.there)}" if found.there else ""
    on = f" on {whole(found.plan.tokens)} tokens" if found.plan.tokens else ""
    text = f" of {found.plan.source}" if found.plan.source else ""
    terminal.echo(f"{', '.join(found.plan.metrics)}{on}{text}: {added} {plural(number, 'job')}{names}{there}")
    if found.in_training:
        left = plural(found.in_training, "job")
        terminal.note(f"Not trained yet, and to be asked for again when they are: {left} of these sweeps.")


def _wake(settings: "Settings", found: "Evaluations") -> None:
    from orchestrator.dispatch import NOT_WOKEN, wake

    if not wake(settings, [one.job_id for one in found.added if one.job_id is not None]):
        terminal.warn(NOT_WOKEN, f"The jobs are queued all the same: workers look every {settings.poll:g} s.")
