"""curve_points.aux_nothing: what AuxK's loss is where it predicts nothing; only what aux_loss is below it is learnt.

NULL in points of earlier versions.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("curve_points", sa.Column("aux_nothing", sa.Double, nullable=True))


def downgrade() -> None:
    op.drop_column("curve_points", "aux_nothing")
