"""How an SAE's latents are built and used: density, profiles over positions, twins, recurrence, clusters.

Start at `family`: one pass over the text (`activity`), then one file per question. Uses sae, formats; pure.
"""

from worker.evaluation.structure.family import measure

__all__ = ["measure"]
