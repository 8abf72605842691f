"""The same servers, templates and databases as the integration tier: every test here runs on SQLite and PostgreSQL."""

from tests.integration.conftest import (
    _postgres_template,
    _sqlite_template,
    engine,
    new_postgres,
    postgres_server,
    postgres_settings,
    pytest_generate_tests,
    redis_url,
    settings,
    sqlite_settings,
)

__all__ = [
    "_postgres_template",
    "_sqlite_template",
    "engine",
    "new_postgres",
    "postgres_server",
    "postgres_settings",
    "pytest_generate_tests",
    "redis_url",
    "settings",
    "sqlite_settings",
]
