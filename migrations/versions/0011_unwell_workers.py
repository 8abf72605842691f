"""A worker whose machine cannot do its work says so; jobs whose trainer crashed share the next one by halves."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("unwell", sa.Text))
    op.add_column("jobs", sa.Column("company", sa.Integer))


def downgrade() -> None:
    op.drop_column("jobs", "company")
    op.drop_column("workers", "unwell")
