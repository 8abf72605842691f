"""How Alembic reaches the database: a connection handed in by `orchestrator.database.schema`, else the settings."""

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.schema import SchemaItem

from orchestrator.database.engine import connect
from orchestrator.database.models import Table, declare_partial_indexes
from orchestrator.database.schema import VERSION_TABLE
from orchestrator.settings import load

declare_partial_indexes()


def _run(connection: Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        version_table=VERSION_TABLE,
        render_as_batch=sqlite,
        transactional_ddl=True,
        include_name=lambda name, kind, _: kind != "table" or name in Table.metadata.tables,
        include_object=_comparable if sqlite else None,
    )
    with context.begin_transaction():
        context.run_migrations()


def _comparable(_: SchemaItem, name: str | None, kind: str, *rest: object) -> bool:
    # SQLite does not show the DESC of an index, so `alembic check` cannot compare it; a test reads its DDL instead.
    return not (kind == "index" and name in {"ix_jobs_claim", "ix_jobs_stream"})


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    engine = connect(load().database, limits=False)
    with engine.execution_options(orch_write=True).begin() as opened:
        _run(opened)
    engine.dispose()
