"""What is asked of the metric family `n2g`."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.job import Part
from orchestrator.config.value_types import NaturalInt, PositiveInt

PositiveShare = Annotated[float, Field(gt=0, lt=1, strict=True)]


class N2gOptions(Part):
    """Options of the family `n2g`."""

    latents: PositiveInt | tuple[NaturalInt, ...] = 100
    """How many latents are drawn, by the evaluation's seed; or which ones."""
    activations: PositiveInt = 16
    """Most activations of a latent that its patterns are built of."""
    build_tokens: PositiveInt = 131_072
    """Tokens before the held-out part that these activations are drawn from."""
    threshold: PositiveShare = 0.5
    """A shorter text stands for a longer one where the latent keeps this share of its activation."""
    saliency: PositiveShare = 0.5
    """A token without which the latent loses less than this share of its activation may be any token."""
    pad_token: NaturalInt | None = None
    """Id of the token put before a text or in the place of one; by default that of " _", else of "_"."""
    reconstruct: bool = False
    """Also simulate every latent by its patterns, and run the model with what is decoded of that in place of the
    activations, for all but transcoders: as long as N2G of all latents takes."""
