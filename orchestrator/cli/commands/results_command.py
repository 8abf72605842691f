"""`orch results`: what was measured of SAEs."""

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.evaluation_tables import long_columns, wide_columns
from orchestrator.cli.display.records import csv_text, plain
from orchestrator.cli.display.tables import table
from orchestrator.cli.selection import database, output_option


@click.command()
@click.argument("selectors", metavar="[JOB|sae:NAME|SWEEP]...", nargs=-1)
@click.option("--metrics", metavar="NAME,...", help="Only these scores, or all of a metric family.")
@click.option("--variants", is_flag=True, help="Also scores of every variant: by position, of baselines, of subsets.")
@click.option("--long", "is_long", is_flag=True, help="A row for each score, with all that is known of it.")
@click.option("--stale", is_flag=True, help="Also scores of SAEs from before orch extend trained them further.")
@output_option("table", "csv", "json")
def results(
    *, selectors: tuple[str, ...], metrics: str | None, variants: bool, is_long: bool, stale: bool, output: str | None
) -> None:
    """Show what was measured of SAEs: a row for each, of every score the newest.

    The table has the main scores, or all of the metrics and families that are named; -o csv and json have all. In it ±
    is a standard error, [low, high] a 90% interval. Of another text there is another row.
    """
    from orchestrator.evaluation.scores import main_scores, scores, wide

    named = [part.strip() for part in metrics.split(",") if part.strip()] if metrics else []
    with database() as (_, engine):
        rows = scores(engine, selectors, metrics=named, stale=stale)
    if output in {"csv", "json"}:
        records = (
            [plain(row.flat()) for row in rows] if is_long else [plain(row) for row in wide(rows, variants=variants)]
        )
        if output == "csv":
            terminal.echo(csv_text(records))
        else:
            terminal.echo_json(terminal.envelope("results", records))
    elif not rows:
        terminal.note("Nothing has been measured of these yet. To measure: orch evaluate SELECTOR")
    elif is_long:
        for line in table(rows, long_columns(), width=terminal.width()):
            terminal.echo(line)
    else:
        shown = rows if named or variants else main_scores(rows)
        found = wide(shown, variants=variants)
        for line in table(found, wide_columns(found), width=None if output else terminal.width()):
            terminal.echo(line)
        if len(shown) < len(rows):
            terminal.note(f"\n{len(rows) - len(shown)} more scores: --metrics FAMILY, --variants, or --long")
