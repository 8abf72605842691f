"""Which function measures each metric family, and in which order they are measured: what takes seconds comes first.

A new family: a file or package here of its name that has a `measure`, and its name below and in
`orchestrator.config.evaluation.families`.
"""

from importlib import import_module
from typing import cast

from orchestrator.config.evaluation.families import Family
from worker.evaluation.metric import LayersFamily, MetricFamily

_IN_ORDER: tuple[Family, ...] = (
    "reconstruction", "downstream", "layers", "structure", "ablation", "probes", "n2g", "explanation",
)  # fmt: skip


def family(name: Family) -> MetricFamily:
    """Return what measures a family; its module is imported now."""
    found: MetricFamily = import_module(f"worker.evaluation.{name}").measure
    return found


def layers_family(name: Family) -> LayersFamily | None:
    """Return what measures a family of all layers together; None: it is measured at one place at a time."""
    return cast(LayersFamily, family(name)) if name == "layers" else None


def in_order() -> tuple[Family, ...]:
    """Return the families in the order in which they are measured."""
    return _IN_ORDER
