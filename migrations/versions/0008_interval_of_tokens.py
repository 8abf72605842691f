"""tokens_to_convergence has a 90% interval; `orch db reanalyse` fills it for jobs that ended before."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NAMES = ("low", "high")


def upgrade() -> None:
    for name in NAMES:
        op.add_column("convergence", sa.Column(name, sa.Double))


def downgrade() -> None:
    for name in NAMES:
        op.drop_column("convergence", name)
