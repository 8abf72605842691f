"""curve_points.fvu_averaged: the fvu of the averaged weights, where fvu is the lower of theirs and the raw weights'.

NULL in points of earlier versions, whose fvu is that of the average.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("curve_points", sa.Column("fvu_averaged", sa.Double, nullable=True))


def downgrade() -> None:
    op.drop_column("curve_points", "fvu_averaged")
