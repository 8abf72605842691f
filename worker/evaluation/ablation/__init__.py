"""How few of a language model's outputs change when one latent is set to zero: the metric family `ablation`.

Start in `family`; `effects` says what is computed, `positions` where. May import the rest of `evaluation`.
"""

from worker.evaluation.ablation.family import measure

__all__ = ["measure"]
