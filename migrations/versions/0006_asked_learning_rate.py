"""jobs.lr is the learning rate asked for, NULL for auto; what auto came to is a fact of the attempt.

Earlier versions wrote the resolved rate over it when an attempt began. Workers of those versions that stay at work over
the upgrade still do: it is the rate that the attempt's facts hold too, and whether it was auto is read from the config.

leases.fvu stays for the same workers, which write it with every point. Nothing of this version reads or writes it, and
a migration of a later release drops it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

JOBS = sa.table("jobs", sa.column("id", sa.Integer), sa.column("lr", sa.Double), sa.column("config", sa.Text))
ATTEMPTS = sa.table(
    "attempts", sa.column("job_id", sa.Integer), sa.column("attempt", sa.Integer), sa.column("facts", sa.JSON)
)
# A stored config is JSON without spaces; within a text of it these quotes would be escaped.
IS_AUTO = JOBS.c.config.contains('"lr":"auto"', autoescape=True)


def upgrade() -> None:
    op.execute(JOBS.update().where(IS_AUTO, JOBS.c.lr.is_not(None)).values(lr=None))


def downgrade() -> None:
    connection = op.get_bind()
    newest_last = sa.select(ATTEMPTS.c.job_id, ATTEMPTS.c.facts).order_by(ATTEMPTS.c.attempt)
    for job_id, facts in connection.execute(newest_last).all():
        if facts and facts.get("lr") is not None:
            connection.execute(JOBS.update().where(JOBS.c.id == job_id, IS_AUTO).values(lr=facts["lr"]))
