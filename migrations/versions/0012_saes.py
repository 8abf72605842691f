"""saes: a row for every SAE, trained here or brought in; those of finished jobs are entered when it is first read."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TEXTS = ("subject", "revision", "hook_point", "target_hook_point", "site")
MEASURED = ("stated_fvu", "stated_l0", "fvu", "fvu_raw", "l0")


def upgrade() -> None:
    op.create_table(
        "saes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("job_id", sa.Integer),
        sa.Column("attempt", sa.Integer),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.Column("uri", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in TEXTS),
        sa.Column("layers", sa.JSON, nullable=False),
        sa.Column("d_model", sa.Integer, nullable=False),
        sa.Column("n_latents", sa.Integer, nullable=False),
        sa.Column("selection", sa.Text, nullable=False),
        sa.Column("k", sa.Integer),
        sa.Column("normalize", sa.Text, nullable=False),
        sa.Column("subtracts_bias", sa.Boolean, nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("context_length", sa.Integer),
        sa.Column("prepend_bos", sa.Boolean),
        *(sa.Column(name, sa.Double) for name in MEASURED),
        sa.Column("measured_tokens", sa.BigInteger),
        sa.Column("measured_on", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_saes"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_saes_job_id"),
        sa.UniqueConstraint("name", name="uq_saes_name"),
        sa.UniqueConstraint("job_id", name="uq_saes_job_id"),
    )


def downgrade() -> None:
    op.drop_table("saes")
