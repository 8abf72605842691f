"""A sweep that comes in over several transactions says which of its jobs have not all arrived yet."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("arriving_after", sa.Integer))


def downgrade() -> None:
    op.drop_column("sweeps", "arriving_after")
