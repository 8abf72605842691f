"""jobs.asked_config: the config a job was enqueued with, where `orch extend` has superseded its budget; jobs.hidden."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NAMES = ("asked_config", "hidden")


def upgrade() -> None:
    for name in NAMES:
        op.add_column("jobs", sa.Column(name, sa.Text))
    hidden = sa.text("hidden IS NOT NULL")
    columns = ["hidden", "state", "sweep_id"]
    op.create_index("ix_jobs_hidden", "jobs", columns, sqlite_where=hidden, postgresql_where=hidden)


def downgrade() -> None:
    op.drop_index("ix_jobs_hidden", "jobs")
    for name in NAMES:
        op.drop_column("jobs", name)
