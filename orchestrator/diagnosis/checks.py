"""All checks, in the order in which each depends on those before it."""

from collections.abc import Callable, Iterator

from orchestrator.diagnosis.finding import Finding
from orchestrator.diagnosis.machine import (
    check_artifacts,
    check_device,
    check_folder,
    check_packages,
    check_python,
    check_settings,
    check_space,
    check_subject,
)
from orchestrator.diagnosis.servers import check_broker, check_clock, check_database, check_tracking, check_workers
from orchestrator.errors import OrchError
from orchestrator.settings import Settings, load

_CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    check_settings,
    check_folder,
    check_artifacts,
    check_space,
    check_database,
    check_clock,
    check_workers,
    check_broker,
    check_tracking,
    check_subject,
    check_device,
)


def run_checks() -> Iterator[Finding]:
    """Yield what each check finds, as it finds it; without valid settings, only what needs none."""
    yield check_python()
    yield check_packages()
    try:
        settings = load()
    except OrchError as error:
        yield Finding("FAIL", "settings", error.message, error.hint)
        return
    for check in _CHECKS:
        yield check(settings)
