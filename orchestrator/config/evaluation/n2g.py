"""What is asked of the metric family `n2g`."""

from orchestrator.config.job import Part


class N2gOptions(Part):
    """Options of the family `n2g`."""
