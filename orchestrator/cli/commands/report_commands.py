"""`orch plot, report`: figures of sweeps, and one page about them."""

import re
import webbrowser
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database, output_option, warn_of_left_out
from orchestrator.errors import ConfigError, FitError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.report import Contents
    from orchestrator.scaling.plots.canvas import Drawing
    from orchestrator.settings import Settings

_SWEEPS = click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True)


@click.command()
@_SWEEPS
@click.option("--figure", "figures", metavar="NAME", multiple=True, help="Only this figure; may be given again.")
@click.option(
    "--format", "form", type=click.Choice(("svg", "png")), default="svg", show_default=True, help="Of the files."
)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=Path(),
              help="Where they go; without it, here.")  # fmt: skip
@output_option("json")
def plot(*, sweeps: tuple[str, ...], figures: tuple[str, ...], form: str, folder: Path, output: str | None) -> None:
    """Draw what sweeps came to, a file per figure.

    Figures: ln, lc, lnk, tn, lr, lr-law, ls, lnt, lrt (laws), curves, dead, frontier, downstream, scores-n, scores-l0,
    scores-tokens, scores-layer, scores-position, layers, layers-mean, layers-prompt, layers-n, layers-k,
    layers-activations, cross, cross-layer, cross-n, cross-k, residuals. Laws that have no fit yet, or none since the
    last job ended, are fitted first, and the fits are stored; lnt and lrt by orch fit alone.
    """
    from orchestrator.scaling.plots.all_plots import figure_names
    from orchestrator.scaling.plots.svg import png, svg

    known = figure_names()
    for name in figures:
        _check_figure(name, known)
    with database() as (settings, engine):
        contents = gather(settings, engine, sweeps)
    drawn = _draw(contents, figures or known)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for drawing in drawn:
        file = folder / f"{file_name(sweeps)}-{drawing.name}.{form}"
        file.write_bytes(png(drawing) if form == "png" else svg(drawing, inline=False).encode())
        records.append({"figure": drawing.name, "file": str(file), "title": drawing.title, "jobs": list(drawing.jobs)})
    if output == "json":
        terminal.echo_json(terminal.envelope("plot", records))
    else:
        for record in records:
            terminal.echo(str(record["file"]))


@click.command()
@_SWEEPS
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the page goes; - for stdout."
)
@click.option("--open/--no-open", "opened", default=False, help="Open it in a browser.")
def report(*, sweeps: tuple[str, ...], output: Path | None, opened: bool) -> None:
    """Write one page about sweeps: findings, figures, fits, jobs.

    The page needs no network and no other file. It goes to reports/SWEEP.html in the data folder; its path is printed.
    Of more than 200 jobs it draws and lists a sample, and SWEEP.csv beside it has all of them.
    Laws that have no fit yet, or none since the last job ended, are fitted first, and the fits are stored.
    """
    with database() as (settings, engine):
        contents = gather(settings, engine, sweeps)
    place = output or report_path(settings, sweeps)
    if str(place) == "-":
        terminal.echo_exact(page_of(contents))
        return
    write(contents, place)
    terminal.echo(str(place))
    if opened:
        webbrowser.open(place.resolve().as_uri())


def gather(settings: "Settings", engine: "Engine", sweeps: Sequence[str]) -> "Contents":
    """Return what there is to say of some sweeps; laws without a fit are fitted. Sweeps that are left out are told.

    Raises:
        NotFound: there is no such sweep.
    """
    from orchestrator.report import collect_contents

    contents = collect_contents(engine, list(dict.fromkeys(sweeps)), database=settings.database)
    warn_of_left_out(engine, sweeps)
    return contents


def page_of(contents: "Contents", *, rows_file: str = "") -> str:
    """Return the page; `rows_file` is the file beside it that has every job."""
    from orchestrator.report import render
    from orchestrator.scaling.plots.all_plots import draw_all

    return render(contents, draw_all(contents.rows, contents.laws), rows_file=rows_file)


def write(contents: "Contents", place: Path) -> None:
    """Write the page to a file, and where it has a sample of the jobs, all of them beside it; the folder is made."""
    from orchestrator.report import rows_csv
    from orchestrator.scaling.plots.sampling import MOST_SHOWN

    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".csv") if len(contents.rows) > MOST_SHOWN else None
    if beside is not None:
        beside.write_text(rows_csv(contents), encoding="utf-8")
    place.write_text(page_of(contents, rows_file=beside.name if beside else ""), encoding="utf-8")


def law_lines(contents: "Contents") -> list[str]:
    """Return what L(N) came to, a line per fixed k; one that says why where there is none."""
    from orchestrator.formatting import interval
    from orchestrator.scaling.plots.law_plots import spelled

    lines = []
    for fit in (fit for fit in contents.laws if fit.law == "ln"):
        exponent = f"b = {interval(fit.coefficients['b'])} (90%)"
        jobs = f"from jobs {', '.join(map(str, fit.jobs))}"
        form = f"{spelled(fit.equation)}, form {fit.form}"
        lines.append(f"L(N) at {fit.group.replace('=', ' = ')}: {form}, {exponent}, {jobs}")
    return lines or [f"Not fitted: {contents.missing['ln'].why}"]


def report_path(settings: "Settings", sweeps: Sequence[str]) -> Path:
    """Return where the page about some sweeps goes."""
    return settings.home / "reports" / f"{file_name(sweeps)}.html"


def file_name(sweeps: Sequence[str]) -> str:
    """Return a name for files about some sweeps: what a file system may not take becomes a dash."""
    return re.sub(r"[^\w.+-]+", "-", "+".join(dict.fromkeys(sweeps))).strip(".-")[:120] or "sweep"


def _check_figure(name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no figure {name!r}", hint=f"{meant}Figures: {', '.join(known)}")


def _draw(contents: "Contents", names: Sequence[str]) -> "list[Drawing]":
    """Draw what there is.

    Raises:
        FitError: nothing can be drawn of what was asked for.
    """
    from orchestrator.scaling.plots.all_plots import draw, law_of, needed_by

    drawn = [drawing for name in names if (drawing := draw(name, contents.rows, contents.laws)) is not None]
    if not drawn:
        law = law_of(names[0]) if len(names) == 1 else None
        missing = contents.missing.get(law) if law is not None else None
        needs = [needed_by(name, contents.rows) for name in names]
        why = missing.why if missing is not None else "; ".join(dict.fromkeys(told for told, _ in needs))
        sweep, measured = contents.sweeps[0].name, next((options for _, options in needs if options), "")
        hint = f"orch evaluate {sweep} {measured}" if measured else f"orch status {sweep}"
        raise FitError(f"there is nothing to draw of {contents.title}: {why}", hint=hint)
    return drawn
