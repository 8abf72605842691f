"""Neuron to graph: short patterns of tokens that predict a latent. Start with family.py, then patterns.py."""

from worker.evaluation.n2g.family import measure

__all__ = ["measure"]
