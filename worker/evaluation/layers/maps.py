"""Heat maps of layers × latents, small enough to be kept with a score."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAP_COLUMNS = 128
_DIGITS = 4


def heat_map(probabilities: Float[Tensor, "n_layers n"], layers: Int[Tensor, " n_layers"]) -> dict[str, Any]:
    """Return rows of layers, and at most 128 columns of latents in their order: of more, means of neighbours."""
    n = probabilities.shape[1]
    columns = [part.mean(1) for part in torch.tensor_split(probabilities, min(n, MAP_COLUMNS), dim=1)] if n else []
    values = torch.stack(columns, dim=1) if columns else probabilities
    return {
        "layers": layers.tolist(),
        "latents": n,
        "values": [[round(value, _DIGITS) for value in row] for row in values.tolist()],
    }
