"""Tuned lenses: the lenses, and the curves of those that jobs train."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "lenses",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("job_id", sa.Integer),
        sa.Column("attempt", sa.Integer),
        sa.Column("source", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("sha256", "uri")),
        sa.Column("model", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("revision", "fingerprint")),
        sa.Column("dtype", sa.Text, nullable=False),
        *(sa.Column(name, sa.Integer) for name in ("n_layers", "d_model")),
        sa.Column("outcome", sa.Text),
        sa.Column("tokens_seen", sa.BigInteger),
        sa.Column("wall_seconds", sa.Double),
        sa.Column("measured_on", sa.Text),
        sa.Column("measured_tokens", sa.BigInteger),
        sa.Column("kl", sa.Double),
        *(sa.Column(name, sa.JSON) for name in ("kls", "logit_lens_kls", "conditions")),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lenses"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_lenses_job_id"),
        sa.UniqueConstraint("name", name="uq_lenses_name"),
        sa.UniqueConstraint("job_id", name="uq_lenses_job_id"),
    )
    op.create_table(
        "lens_points",
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("kl", sa.Double),
        sa.Column("kls", sa.JSON, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("loss", "grad_norm", "wall_seconds")),
        sa.PrimaryKeyConstraint("job_id", "tokens_seen", name="pk_lens_points"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_lens_points_job_id"),
    )


def downgrade() -> None:
    for table in ("lens_points", "lenses"):
        op.drop_table(table)
    # A version before would take the training of a lens for that of an SAE: its jobs go.
    lenses = "SELECT id FROM jobs WHERE kind = 'lens'"
    for table in ("leases", "attempts", "events", "checkpoints", "convergence"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN ({lenses})")
    op.execute("DELETE FROM jobs WHERE kind = 'lens'")
