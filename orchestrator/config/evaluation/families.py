"""The metric families that an evaluation may ask for, by the names that are typed, and what each answers."""

from typing import Literal, get_args

Family = Literal["reconstruction", "downstream", "probes", "n2g", "ablation", "structure", "explanation", "layers"]

FAMILIES: tuple[Family, ...] = get_args(Family)
MEANINGS: dict[Family, str] = {
    "reconstruction": "how much of each activation is reconstructed: fvu, cosine, norms, L0, density",
    "downstream": "what the reconstruction costs the language model: ΔCE, KL, by position",
    "probes": "whether single latents tell known properties of a text apart",
    "n2g": "whether a latent's activations follow from a short pattern of tokens (N2G)",
    "ablation": "how few of the model's outputs change when one latent is set to zero",
    "structure": "density, dense and opposing latents, position profiles, recurrence, clusters",
    "explanation": "how well an explanation written by a language model predicts a latent",
    "layers": "at which layers each latent of an SAE of several layers is active",
}
DEFAULT: tuple[Family, ...] = ("reconstruction", "downstream")
"""What `orch evaluate` measures where nothing is asked for: seconds for one SAE."""
MAIN_SCORES: dict[Family, tuple[str, ...]] = {
    "reconstruction": ("fvu", "alive"),
    "downstream": ("delta_ce", "kl", "recovered_ce"),
    "probes": ("probe_loss", "probe_balanced_accuracy"),
    "n2g": ("n2g_f1",),
    "ablation": ("ablation_sparsity",),
    "structure": (),
    "explanation": ("explanation_score",),
    "layers": ("layer_std", "var_ratio_token"),
}
"""The scores that a table of many SAEs has a column for; all others are there when they are asked for."""
