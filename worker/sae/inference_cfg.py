"""What other programs ask of an SAE's `cfg`."""

from dataclasses import dataclass
from typing import Any

from orchestrator.config.hook_names import transformer_lens_name
from orchestrator.config.sae_facts import SaeFacts


@dataclass
class InferenceCfg:
    """The fields of SAEBench's config of a custom SAE, by its names; it writes to some of them."""

    d_in: int
    d_sae: int
    model_name: str
    hook_name: str
    """In TransformerLens's words where the place is one of ours, else as the files name it."""
    hook_layer: int
    """-1: not known, or several."""
    architecture: str
    dtype: str
    device: str = "cpu"
    apply_b_dec_to_input: bool | None = None
    context_size: int | None = None
    prepend_bos: bool = True
    normalize_activations: str = "none"
    """Always none: the SAE takes raw activations, and normalises them itself."""
    hook_head_index: int | None = None
    activation_fn_str: str = ""
    activation_fn_kwargs: Any = None
    finetuning_scaling_factor: bool | None = None
    model_from_pretrained_kwargs: Any = None
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @classmethod
    def of(cls, facts: SaeFacts) -> "InferenceCfg":
        """Return the config of an SAE by what is known of it."""
        return cls(
            d_in=facts.d_model,
            d_sae=facts.n_latents,
            model_name=facts.subject or "",
            hook_name=transformer_lens_name(facts) or facts.hook_point or "",
            hook_layer=facts.layers[0] if len(facts.layers) == 1 else -1,
            architecture=facts.selection,
            dtype=facts.dtype,
            apply_b_dec_to_input=facts.subtracts_bias,
            context_size=facts.context_length,
            prepend_bos=True if facts.prepend_bos is None else facts.prepend_bos,
        )
