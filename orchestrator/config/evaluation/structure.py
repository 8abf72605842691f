"""What is asked of the metric family `structure`."""

from orchestrator.config.job import Part


class StructureOptions(Part):
    """Options of the family `structure`."""
