"""curve_points.sparsity_coef: the weight of the penalty that sae.target_l0 has led to; NULL where it is fixed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("curve_points", sa.Column("sparsity_coef", sa.Double, nullable=True))


def downgrade() -> None:
    op.drop_column("curve_points", "sparsity_coef")
