"""What every table shares: the names of constraints, and how a float that is not finite is stored."""

import math
from typing import Any

from sqlalchemy import JSON, Dialect, Double, MetaData, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase


class Finite(TypeDecorator[float]):
    """A float whose NaN and infinities are stored as NULL."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """Return the value to store."""
        return None if value is None or not math.isfinite(value) else float(value)


class Table(DeclarativeBase):
    """What every table shares: names for constraints, so that a migration can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, float: Double, dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads it so
