"""Evaluation jobs: what kind a job is and of which SAE, what a sweep asks to be measured, scores, measured families."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

EVALUATION = "kind <> 'train'"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.Text, nullable=False, server_default="train"))
    op.add_column("jobs", sa.Column("sae_id", sa.Integer))
    where = sa.text(EVALUATION)
    columns = ["kind", "hidden", "state", "sweep_id"]
    op.create_index("ix_jobs_evaluations", "jobs", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("ix_jobs_sae_id", "jobs", ["sae_id"], sqlite_where=where, postgresql_where=where)
    op.add_column("sweeps", sa.Column("evaluation", sa.Text))
    op.add_column("workers", sa.Column("schema", sa.Text))
    _make_scores()
    op.create_table(
        "measured_families",
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("wall_seconds", sa.Double),
        sa.Column("uri", sa.Text),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("measured_on", sa.Text),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "family", name="pk_measured_families"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_measured_families_job_id"),
    )


def _make_scores() -> None:
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("sae_id", sa.Integer, nullable=False),
        sa.Column("sae_attempt", sa.Integer),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("value", "std_error", "low", "high")),
        sa.Column("n", sa.BigInteger),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("details", sa.JSON),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_scores"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_scores_job_id"),
        sa.ForeignKeyConstraint(["sae_id"], ["saes.id"], name="fk_scores_sae_id"),
        sa.UniqueConstraint("job_id", "family", "metric", "variant", name="uq_scores_job_id_family_metric_variant"),
    )
    op.create_index("ix_scores_sae_id", "scores", ["sae_id"])


def downgrade() -> None:
    op.drop_table("measured_families")
    op.drop_table("scores")
    op.drop_column("workers", "schema")
    op.drop_column("sweeps", "evaluation")
    for name in ("ix_jobs_sae_id", "ix_jobs_evaluations"):
        op.drop_index(name, "jobs")
    # A version before would take an evaluation for a training: its jobs go.
    evaluations = "SELECT id FROM jobs WHERE kind = 'evaluate'"
    for table in ("leases", "attempts", "events", "checkpoints"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN ({evaluations})")
    op.execute("DELETE FROM jobs WHERE kind = 'evaluate'")
    for name in ("sae_id", "kind"):
        op.drop_column("jobs", name)
