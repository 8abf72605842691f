"""`orch metrics`: figures in the text format that Prometheus reads."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database

if TYPE_CHECKING:
    from orchestrator.results import QueueStats, RegisteredWorker

_STATES = ("at work", "idle", "unwell", "draining", "stopping", "lost")


class Family(NamedTuple):
    """One metric: its samples by the value of its one label, or one sample without a label."""

    name: str
    kind: str
    """gauge or counter."""
    text: str
    samples: Mapping[str, float]
    label: str = ""


@click.command()
def metrics() -> None:
    """Print figures for Prometheus.

    For its node exporter's text file collector, say, every minute: orch metrics > orch.prom.new; mv orch.prom.new
    orch.prom
    """
    from orchestrator import results

    with database() as (_, engine):
        found, workers = results.stats(engine), results.registered_workers(engine)
    for family in _families(found, workers):
        for line in exposition(family):
            terminal.echo(line)


def exposition(family: Family) -> Iterator[str]:
    """Yield the lines of one metric: its help, its type, its samples."""
    yield f"# HELP {family.name} {_escaped(family.text)}"
    yield f"# TYPE {family.name} {family.kind}"
    for value, number in family.samples.items():
        label = f'{{{family.label}="{_escaped(value, quotes=True)}"}}' if family.label else ""
        yield f"{family.name}{label} {_number(number)}"


def _families(found: "QueueStats", workers: "Sequence[RegisteredWorker]") -> Iterator[Family]:
    def gauge(name: str, text: str, value: float | None) -> Family:
        return Family(name, "gauge", text, {} if value is None else {"": value})

    def counter(name: str, text: str, value: float) -> Family:
        return Family(name, "counter", text, {"": value})

    states = {state: sum(worker.state == state for worker in workers) for state in _STATES}
    ended = found.attempts
    yield Family("orch_jobs", "gauge", "Training jobs by state.", found.jobs, "state")
    yield Family("orch_evaluations", "gauge", "Evaluation jobs by state.", found.evaluations, "state")
    yield Family("orch_lenses", "gauge", "Jobs that train tuned lenses, by state.", found.lenses, "state")
    yield gauge("orch_queue_paused", "Whether the whole queue is paused.", found.paused_at is not None)
    yield gauge("orch_oldest_queued_age_seconds", "Since the oldest queued job was enqueued.", found.oldest_queued_age)
    yield Family("orch_leases", "gauge", "Jobs that a worker holds, by its device.", found.running, "device")
    yield gauge("orch_lease_slack_seconds", "Until the first lease runs out; below 0: overdue.", found.lease_slack)
    yield Family("orch_workers", "gauge", "Workers that have not ended, by state.", states, "state")
    yield gauge("orch_tokens_per_second", "Tokens a second that SAEs are trained on.", found.tokens_per_second)
    yield counter(
        "orch_tokens_trained_total", "Tokens that SAEs were trained on, by all attempts.", found.tokens_trained
    )
    yield counter("orch_results_total", "Attempts that ended with the result of an SAE.", ended["results"])
    yield counter("orch_evaluated_total", "Attempts that measured all they were to.", ended["evaluations"])
    yield counter("orch_lenses_trained_total", "Attempts that ended with the result of a lens.", ended["lenses"])
    yield counter("orch_failures_total", "Attempts that failed.", ended["failures"])
    yield counter("orch_preemptions_total", "Attempts that handed their job back.", ended["preemptions"])
    yield counter("orch_machine_faults_total", "Attempts that a machine could not serve.", ended["machine"])
    yield counter("orch_lost_total", "Attempts whose worker fell silent.", ended["lost"])


def _escaped(text: str, *, quotes: bool = False) -> str:
    plain = text.replace("\\", r"\\").replace("\n", r"\n")
    return plain.replace('"', r"\"") if quotes else plain


def _number(value: float) -> str:
    if math.isfinite(value):
        return f"{value:d}" if isinstance(value, int) else repr(float(value))
    return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
