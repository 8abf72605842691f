"""Workers in several containers of one machine know one another, and share its cores."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("machine", sa.Text))


def downgrade() -> None:
    op.drop_column("workers", "machine")
