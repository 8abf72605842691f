"""The words of the table of SAEs."""

from typing import Literal, NamedTuple

SaeState = Literal["unverified", "verified", "refused"]
"""Whether an SAE was seen to reconstruct its subject's activations as it should; refused: it was seen not to."""


class Measured(NamedTuple):
    """What an SAE came to on its subject's activations."""

    fvu: float
    """Of the vectors as it normalises them."""
    fvu_raw: float
    """Of the subject's own activations."""
    l0: float
    tokens: int
    text: str
    """What was read."""
