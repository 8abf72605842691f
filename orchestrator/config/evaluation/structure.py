"""What is asked of the metric family `structure`."""

from orchestrator.config.job import Part
from orchestrator.config.value_types import PositiveInt, Text


class StructureOptions(Part):
    """Options of the family `structure`."""

    against: tuple[Text, ...] = ()
    """SAEs whose latents are looked for in the others: folders or files, and of orch evaluate job numbers, sae:NAME and
    sweeps, too."""
    matched_latents: PositiveInt = 4096
    """Latents are matched one to one where neither SAE has more: the time grows with the cube."""
    umap: bool = False
    """Order the latents by a 1-D UMAP, too; umap-learn must be installed, and compiles itself for 20 s."""
    umap_latents: PositiveInt = 10_000
    """Most latents that are ordered so; of more, a sample."""
