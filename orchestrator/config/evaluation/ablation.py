"""What is asked of the metric family `ablation`."""

from typing import Literal, get_args

from orchestrator.config.job import Part
from orchestrator.config.value_types import PositiveInt

AblationVariant = Literal["one position", "from start", "no error"]
"""one position: the latent is taken out of the activations at one position, the rest of them stays, what the SAE does
not reconstruct with it. from start: out of all positions of the context. no error: at that one position there is the
reconstruction, with the latent and without."""
ABLATION_VARIANTS: tuple[AblationVariant, ...] = get_args(AblationVariant)


class AblationOptions(Part):
    """Options of the family `ablation`."""

    pairs: PositiveInt = 2048
    """About how many pairs of a position and a latent that is active there; as many channels and directions."""
    affected_tokens: PositiveInt = 16
    """T: tokens whose logits are compared, that position the first of them."""
    variants: tuple[AblationVariant, ...] = ("one position", "from start")
    """What it means to ablate a latent; each is measured on its own."""
