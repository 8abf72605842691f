"""curve_points.by_layer: what a point found at each layer of an SAE that reads several; NULL where it reads one."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("curve_points", sa.Column("by_layer", sa.JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("curve_points", "by_layer")
