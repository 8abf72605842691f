"""At which layers the latents of an SAE of several layers are active: the metric family `layers`.

Start at `family`: one pass over the text (`batches`, `sums`), then one file per question. Uses sae, subject; pure.
"""

from worker.evaluation.layers.family import measure

__all__ = ["measure"]
