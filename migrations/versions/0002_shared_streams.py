"""Jobs say which stream of activations they read, so that those of one stream can be trained together."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # NULL: queued by an earlier version, and trained alone.
    op.add_column("jobs", sa.Column("stream_key", sa.Text))
    op.create_index("ix_jobs_stream", "jobs", ["stream_key", "state", sa.text("priority DESC"), "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_stream", "jobs")
    op.drop_column("jobs", "stream_key")
