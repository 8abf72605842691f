"""Fits of scaling laws are kept, with what they were fitted to."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "fits",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("law", sa.Text, nullable=False),
        sa.Column("sweeps", sa.Text, nullable=False),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("commit", sa.Text),
        sa.Column("superseded_by", sa.Integer),
        sa.Column("mlflow_run_id", sa.Text),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fits"),
        sa.ForeignKeyConstraint(["superseded_by"], ["fits.id"], name="fk_fits_superseded_by"),
    )
    op.create_index("ix_fits_newest", "fits", ["superseded_by", "law"])


def downgrade() -> None:
    op.drop_index("ix_fits_newest", "fits")
    op.drop_table("fits")
