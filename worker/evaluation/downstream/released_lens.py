"""What mlsae's released code measures of an SAE in the space of a tuned lens, to compare: nothing is trained by it.

Source: mlsae, `model/lightning.py`: `forward_lens` writes what it maps over the activations themselves, so that the
model is held against itself with vectors of lens space in its stream; `create_untransform_hidden` takes of the inverse
of I + A the diagonal alone; and the output of block l is mapped by translator l, which is that of the block's input.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.clean_pass import CleanBatch, CleanPass
from worker.evaluation.context import EvaluationContext
from worker.sae.inference import InferenceSae

BASELINE, WHOLE = "released baseline", "released lens"
RELEASED = (BASELINE, WHOLE)
"""The first differs from ours in what it is held against alone; the second does all that the released code does."""


class ReleasedRun(NamedTuple):
    """Two forward passes that are held against each other."""

    baseline: Float[Tensor, "batch context d_model"]
    """What is put in place of the activations in the pass that is taken for the model's own."""
    patched: Float[Tensor, "batch context d_model"]
    """What is put there in the other."""


def as_released(
    context: EvaluationContext, x: Float[Tensor, "batch context d_model"], replaced: Tensor, sae: InferenceSae
) -> dict[str, ReleasedRun]:
    """Return the passes of each variant; `replaced` is x̂ as it is put back here."""
    lens, layer = context.lens, context.model()[0].hook.layer
    assert lens is not None
    assert layer is not None
    found = {BASELINE: ReleasedRun(context.into(x), replaced)}
    if layer == 0:  # its translator would be that of the embeddings, which no lens here has: the identity
        return found | {WHOLE: ReleasedRun(x, sae(x).float())}
    mapped = lens.into(layer - 1, x)
    # Of every unit vector the way back, whose own coordinate is on the diagonal.
    diagonal = lens.back_direction(layer - 1, torch.eye(x.shape[-1], device=x.device)).diagonal()
    return found | {WHOLE: ReleasedRun(mapped, (sae(mapped).float() - lens.biases[layer - 1]) * diagonal)}


def degraded(clean: CleanPass, batch: CleanBatch, baseline: Float[Tensor, "batch context d_model"]) -> CleanBatch:
    """Return a batch whose clean predictions are those of the model with something in place of the activations."""
    prediction = clean.predicted(batch, baseline)
    return batch._replace(clean=prediction, losses={**batch.losses, "ce": prediction["ce"]})
