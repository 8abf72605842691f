"""Which function measures each metric family, and in which order they are measured: what takes seconds comes first.

A new family: a file or package here of its name that has a `measure`, and its name below and in
`orchestrator.config.evaluation.families`.
"""

from importlib import import_module

from orchestrator.config.evaluation.families import Family
from worker.evaluation.metric import MetricFamily

_IN_ORDER: tuple[Family, ...] = (
    "reconstruction", "downstream", "structure", "ablation", "probes", "n2g", "explanation",
)  # fmt: skip


def family(name: Family) -> MetricFamily:
    """Return what measures a family; its module is imported now."""
    found: MetricFamily = import_module(f"worker.evaluation.{name}").measure
    return found


def in_order() -> tuple[Family, ...]:
    """Return the families in the order in which they are measured."""
    return _IN_ORDER
