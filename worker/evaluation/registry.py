"""Which function measures each metric family, and in which order they are measured: what takes seconds comes first.

A new family: a file here that has a `measure`, a name in `orchestrator.config.evaluation.families`, an entry below.
"""

from collections.abc import Mapping
from importlib import import_module

from orchestrator.config.evaluation.families import Family
from worker.evaluation.metric import MetricFamily

_MODULES: Mapping[Family, str] = {
    "downstream": "worker.evaluation.downstream",
}


def family(name: Family) -> MetricFamily:
    """Return what measures a family; its module is imported now."""
    found: MetricFamily = import_module(_MODULES[name]).measure
    return found


def in_order() -> tuple[Family, ...]:
    """Return the families in the order in which they are measured."""
    return tuple(_MODULES)
