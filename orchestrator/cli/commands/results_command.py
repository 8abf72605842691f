"""`orch results`: what was measured of SAEs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.evaluation_tables import layer_columns, long_columns, wide_columns
from orchestrator.cli.display.formats import plural
from orchestrator.cli.display.records import csv_text, plain
from orchestrator.cli.display.tables import table
from orchestrator.cli.selection import database, output_option

if TYPE_CHECKING:
    from orchestrator.evaluation.scores import ScoreEntry

_NOTHING = "Nothing has been measured of these yet. To measure: orch evaluate SELECTOR"


@click.command()
@click.argument("selectors", metavar="[JOB|sae:NAME|SWEEP]...", nargs=-1)
@click.option("--metrics", metavar="NAME,...", help="Only these scores, or all of a metric family.")
@click.option("--variants", is_flag=True, help="Also scores of every variant: by position, of baselines, of subsets.")
@click.option("--long", "is_long", is_flag=True, help="A row for each score, with all that is known of it.")
@click.option("--by-layer", is_flag=True, help="A row for each SAE and score, a column for each layer.")
@click.option("--stale", is_flag=True, help="Also scores of SAEs from before orch extend trained them further.")
@output_option("table", "csv", "json")
def results(
    *, selectors: tuple[str, ...], metrics: str | None, variants: bool, is_long: bool, by_layer: bool, stale: bool,
    output: str | None,
) -> None:  # fmt: skip
    """Show what was measured of SAEs: a row for each, of every score the newest.

    The table has the main scores, or all of the metrics and families that are named; -o csv and json have all. In it ±
    is a standard error, [low, high] a 90% interval. Measured
    on another text or number of tokens, or with other options, it is another row.

    --by-layer has the mean over the layers and the coefficient of variation (CV) last. * is the lowest at a layer of
    SAEs with as many latents and the same k; -o csv and json tell how sure each number is.
    """
    from orchestrator.evaluation.scores import main_scores, scores, wide

    if by_layer and is_long:
        raise click.UsageError("--by-layer and --long are two tables: ask for one of them")
    named = [part.strip() for part in metrics.split(",") if part.strip()] if metrics else []
    with database() as (_, engine):
        rows = scores(engine, selectors, metrics=named, stale=stale, replaced=by_layer)
    if by_layer:
        _show_by_layer(rows, is_chosen=bool(named), variants=variants, output=output)
    elif output in {"csv", "json"}:
        records = (
            [plain(row.flat()) for row in rows] if is_long else [plain(row) for row in wide(rows, variants=variants)]
        )
        _echo_records(records, output)
    elif not rows:
        terminal.note(_NOTHING)
    elif is_long:
        for line in table(rows, long_columns(), width=terminal.width()):
            terminal.echo(line)
    else:
        shown = rows if named or variants else main_scores(rows)
        found = wide(shown, variants=variants)
        for line in table(found, wide_columns(found), width=None if output else terminal.width()):
            terminal.echo(line)
        if len(shown) < len(rows):
            terminal.note(f"\n{plural(len(rows) - len(shown), 'more score')}: --metrics FAMILY, --variants, or --long")


def _show_by_layer(rows: "Sequence[ScoreEntry]", *, is_chosen: bool, variants: bool, output: str | None) -> None:
    from orchestrator.evaluation.layer_matrix import by_layer, main_matrix

    found = by_layer(rows, variants=variants)
    if output in {"csv", "json"}:
        _echo_records([plain(row) for row in found], output)
    elif not found:
        measured = "These have been measured at no layers one by one" if rows else _NOTHING.partition(".")[0]
        terminal.note(f"{measured}. To measure them at every layer: orch evaluate SELECTOR --across-layers")
    else:
        shown = found if is_chosen or variants else main_matrix(found)
        for line in table(shown, layer_columns(shown), width=None if output else terminal.width()):
            terminal.echo(line)
        if len(shown) < len(found):
            terminal.note(f"\n{plural(len(found) - len(shown), 'more row')}: --metrics NAME,..., --variants, or -o csv")


def _echo_records(records: list[dict[str, Any]], output: str | None) -> None:
    if output == "csv":
        terminal.echo(csv_text(records))
    else:
        terminal.echo_json(terminal.envelope("results", records))
