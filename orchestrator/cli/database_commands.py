"""`orch db`: the database's schema."""

import click

from orchestrator.cli import terminal
from orchestrator.errors import StorageError


@click.group()
def db() -> None:
    """Create, upgrade and check the database schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema up to date.

    Safe to call twice, also at once.
    """
    from orchestrator.database.schema import upgrade as upgrade_schema
    from orchestrator.settings import load, mask

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
    from orchestrator.database.schema import HEAD
    from orchestrator.database.schema import current as current_schema
    from orchestrator.settings import load, mask

    settings = load()
    found = current_schema(settings)
    if found != HEAD:
        has = f"schema {found}" if found else "no schema"
        raise StorageError(
            f"database {mask(settings.database)} has {has}; this version needs {HEAD}", hint="Run: orch db upgrade"
        )
    terminal.echo(f"{mask(settings.database)}: schema {found}, as this version needs")
