"""What is asked of the metric family `ablation`."""

from orchestrator.config.job import Part


class AblationOptions(Part):
    """Options of the family `ablation`."""
