"""What is asked of the metric family `downstream`."""

from orchestrator.config.job import Part


class DownstreamOptions(Part):
    """Options of the family `downstream`."""
