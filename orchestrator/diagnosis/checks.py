"""All checks, in the order in which each depends on those before it."""

from collections.abc import Callable, Iterator

from orchestrator.diagnosis.finding import Finding
from orchestrator.diagnosis.machine import (
    check_artifacts,
    check_device,
    check_folder,
    check_logs,
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
    check_logs,
    check_space,
    check_database,
    check_clock,
    check_workers,
    check_broker,
    check_tracking,
    check_subject,
    check_device,
)


_OF_A_WORKER: tuple[Callable[[Settings], Finding], ...] = (check_folder, check_artifacts, check_space)
"""What a worker's own machine must pass; it has opened the database itself, and torch is loaded by its trainers."""


def check_for_worker(settings: Settings) -> Finding | None:
    """Return the first thing that keeps this machine from training; None where nothing does."""
    findings = (check(settings) for check in _OF_A_WORKER)
    return next((finding for finding in findings if finding.level == "FAIL"), None)


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
