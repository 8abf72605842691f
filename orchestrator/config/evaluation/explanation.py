"""What is asked of the metric family `explanation`."""

from orchestrator.config.job import Part


class ExplanationOptions(Part):
    """Options of the family `explanation`."""
