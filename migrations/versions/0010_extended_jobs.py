"""jobs.asked_config: the config a job was enqueued with, where `orch extend` has superseded its budget."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("asked_config", sa.Text))


def downgrade() -> None:
    op.drop_column("jobs", "asked_config")
