"""What is asked of the metric family `probes`."""

from orchestrator.config.job import Part


class ProbesOptions(Part):
    """Options of the family `probes`."""
