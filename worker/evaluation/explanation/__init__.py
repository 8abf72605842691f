"""Explanations by a language model, scored by what it predicts from them. Start with family.py, then explainer.py."""

from worker.evaluation.explanation.family import measure

__all__ = ["measure"]
