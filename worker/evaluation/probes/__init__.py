"""The metric family `probes`: what single latents tell apart. Start at `family`; `logistic` is its mathematics."""

from worker.evaluation.probes.family import measure

__all__ = ["measure"]
