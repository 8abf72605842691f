"""The first schema: sweeps, jobs, attempts, leases, curves, results, convergence counts, checkpoints, events."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

LIVE = sa.text("state NOT IN ('failed', 'cancelled')")
TABLES = ("sweeps", "jobs", "attempts", "leases", "curve_points", "results", "convergence", "checkpoints", "events")


def upgrade() -> None:
    _sweeps()
    _jobs()
    _attempts()
    _leases()
    _curve_points()
    _results()
    _convergence()
    _checkpoints()
    _events()


def downgrade() -> None:
    for name in reversed(TABLES):
        op.drop_table(name)


def _sweeps() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("max_parallel", sa.Integer),
        sa.Column("run_cap", sa.Integer),
        sa.Column("max_failures", sa.Integer, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("mlflow_experiment_id", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("name", name="uq_sweeps_name"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("sweep_id", sa.Integer, nullable=False),
        sa.Column("config_id", sa.Text, nullable=False),
        sa.Column("replica", sa.Integer, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("n_latents", sa.Integer),
        sa.Column("d_model", sa.Integer),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("max_tokens", sa.BigInteger, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("lr", sa.Double),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("desired", sa.Text, nullable=False),
        *(sa.Column(n, sa.Integer, nullable=False) for n in ("attempt", "failures", "preemptions", "lost_in_row")),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("reason", sa.Text),
        sa.Column("mlflow_run_id", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"], name="fk_jobs_sweep_id"),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name=op.f("ck_jobs_finished")
        ),
    )
    config = ["sweep_id", "config_id", "replica"]
    op.create_index("uq_jobs_live_config", "jobs", config, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
    op.create_index("ix_jobs_claim", "jobs", ["state", sa.text("priority DESC"), "id", "sweep_id"])
    op.create_index("ix_jobs_sweep_state", "jobs", ["sweep_id", "state"])


def _attempts() -> None:
    op.create_table(
        "attempts",
        *_job_key("attempts", "job_id", "attempt"),
        sa.Column("attempt", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("token", "worker", "host")),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("outcome", sa.Text),
        sa.Column("exit_code", sa.Integer),
        sa.Column("tokens_start", sa.BigInteger),
        sa.Column("tokens_end", sa.BigInteger),
        sa.Column("mlflow_run_id", sa.Text),
        sa.Column("facts", sa.JSON),
        sa.Column("error", sa.Text),
    )


def _leases() -> None:
    op.create_table(
        "leases",
        *_job_key("leases", "job_id"),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        *_doubles("tokens_per_second", "fvu"),
        sa.Column("progress_at", sa.Double, nullable=False),
        sa.UniqueConstraint("token", name="uq_leases_token"),
    )


def _curve_points() -> None:
    op.create_table(
        "curve_points",
        *_job_key("curve_points", "job_id", "tokens_seen"),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        *_doubles("fvu", "fvu_raw", "loss", "aux_loss", "dead_share", "l0", "grad_norm", "wall_seconds"),
        *_doubles("flops_dense", "flops_executed", "flops_subject"),
    )


def _results() -> None:
    op.create_table(
        "results",
        *_job_key("results", "job_id"),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        *_doubles("fvu", "fvu_raw", "untrained_fvu", "dead_share", "l0", "l_inf", "l_inf_se"),
        *_doubles("flops_dense", "flops_executed", "flops_subject", "wall_seconds"),
        sa.Column("artifact_uri", sa.Text),
    )


def _convergence() -> None:
    op.create_table(
        "convergence",
        *_job_key("convergence", "job_id", "epsilon"),
        sa.Column("epsilon", sa.Double, nullable=False),
        *_doubles("tokens", "lower_bound"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        *_job_key("checkpoints", "job_id", "tokens_seen", "attempt"),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Integer),
        sa.Column("sweep_id", sa.Integer),
        sa.Column("attempt", sa.Integer),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("data", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"], name="fk_events_sweep_id"),
    )
    op.create_index("ix_events_job", "events", ["job_id", "id"])
    op.create_index("ix_events_sweep", "events", ["sweep_id", "id"])


def _doubles(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double) for name in names]


def _job_key(table: str, *key: str) -> tuple[sa.Column[int], sa.PrimaryKeyConstraint, sa.ForeignKeyConstraint]:
    return (
        sa.Column("job_id", sa.Integer, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=f"fk_{table}_job_id"),
    )
