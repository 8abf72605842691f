"""Workers say that they are there; the whole queue can be paused; sums over attempts read an index alone."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("every_seconds", sa.Double, nullable=False),
        sa.Column("desired", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("token", name="pk_workers"),
    )
    op.create_table(
        "queue_pause",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_queue_pause"),
    )
    op.create_index("ix_attempts_ended", "attempts", ["ended_at", "outcome", "tokens_start", "tokens_end"])


def downgrade() -> None:
    op.drop_index("ix_attempts_ended", "attempts")
    op.drop_table("queue_pause")
    op.drop_table("workers")
