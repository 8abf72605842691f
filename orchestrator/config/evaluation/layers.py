"""What is asked of the metric family `layers`."""

from orchestrator.config.job import Part
from orchestrator.config.value_types import NaturalInt, PositiveInt, Text

PROMPT = "When Mary and John went to the store, John gave a drink to"
"""Of Lawson et al. 2024: the example of indirect object identification."""


class LayersOptions(Part):
    """Options of the family `layers`, which takes an SAE at several layers of one site."""

    tokens: PositiveInt | None = None
    """Tokens that the distributions over layers are of; without it the held-out text. More than that: the contexts
    before it, too. The paper's are of 10,000,000 or more."""
    prompt: Text = PROMPT
    """A text of its own, of which each latent's activations are summed by layer: the heat map of a prompt."""
    least_activations: tuple[PositiveInt, ...] = (1, 10, 100, 10_000)
    """Counts of activations from which on a latent is called active at a layer: a score for each."""
    examples: NaturalInt = 4
    """Largest activations that are kept with their text, of each latent at each layer."""
    example_latents: NaturalInt = 32
    """Latents that examples are kept of, drawn by the evaluation's seed; 0: none."""
    example_tokens: NaturalInt = 4
    """Tokens that are shown before and behind an example's own."""
