"""What a reconstruction costs the language model: the metric family `downstream`. Start in family.

May import the rest of `evaluation`. `loss_table` measures any reconstruction of the activations, not only an SAE's.
"""

from worker.evaluation.downstream.family import measure

__all__ = ["measure"]
