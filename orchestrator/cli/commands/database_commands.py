"""`orch db`: the database's schema, and copies of it all."""

from pathlib import Path

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import plural


@click.group()
def db() -> None:
    """Create, upgrade and check the database schema; back it up."""


@db.command()
def upgrade() -> None:
    """Bring the schema up to date.

    Safe to call twice, also at once.
    """
    from orchestrator.database.schema import upgrade as upgrade_schema
    from orchestrator.masking import mask
    from orchestrator.settings import load

    settings = load()
    terminal.echo(f"{mask(settings.database)}: schema {upgrade_schema(settings)}")


@db.command()
def current() -> None:
    """Print the version of the schema."""
    from orchestrator.database.schema import current as current_schema
    from orchestrator.settings import load

    terminal.echo(current_schema(load()) or "none")


@db.command()
def check() -> None:
    """Check that the schema is up to date; exit code 5 if not."""
    from orchestrator.database.schema import HEAD, other_schema
    from orchestrator.database.schema import current as current_schema
    from orchestrator.masking import mask
    from orchestrator.settings import load

    settings = load()
    found = current_schema(settings)
    if found != HEAD:
        raise other_schema(settings, found)
    terminal.echo(f"{mask(settings.database)}: schema {found}, as this version needs")


@db.command()
def reanalyse() -> None:
    """Judge every stored curve anew, by this version's rules.

    L∞, its standard error, tokens to convergence and their intervals are functions of the stored curve; so is whether a
    job learned anything. No job is trained again. Fits of laws stay as they were stored: orch fit SWEEP makes new ones.
    """
    from orchestrator.cli.selection import database
    from orchestrator.queue import reanalyse as judge_anew

    with database() as (_, engine):
        found = judge_anew(engine)
    terminal.echo(
        f"{plural(found.n_jobs, 'result')} judged anew: L∞ or tokens to convergence changed in {found.n_limits}"
    )
    for job_id, (before, now) in found.outcomes.items():
        terminal.echo(f"job {job_id}: {before} is now {now}")


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def backup(*, file: Path, force: bool) -> None:
    """Copy the whole database into FILE, also while workers write.

    SQLite's copy is a database again, and checked; PostgreSQL's is made by pg_dump, for pg_restore. Checkpoints and
    results are files of their own: copy the data folder for them.
    """
    from orchestrator.database.backup import back_up
    from orchestrator.masking import mask
    from orchestrator.settings import load

    settings = load()
    way_back = back_up(settings.database, file, force=force)
    terminal.echo(str(file))
    terminal.note(f"A copy of {mask(settings.database)}. To go back to it: {way_back}.")
