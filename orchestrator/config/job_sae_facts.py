"""What is known of the SAE of a job, in the words that are used of every SAE."""

from typing import Any

from orchestrator.config.sae_facts import SaeFacts, Selection
from orchestrator.config.sites import default_layer

_SELECTIONS: dict[str, Selection] = {"multi_topk": "topk"}
"""How the latents of a trained SAE are chosen, where it is not called as the activation it was trained with."""


def job_sae_facts(config: dict[str, Any], facts: dict[str, Any], *, d_model: int) -> SaeFacts:
    """Return what is known of a job's SAE by its stored config and by what its attempt settled."""
    subject, data, sae = config["subject"], config["data"], config["sae"]
    found = facts.get("subject", {})
    layers = _layers(subject, found)
    return SaeFacts(
        selection=_SELECTIONS.get(sae["activation"], sae["activation"]),
        d_model=d_model,
        n_latents=facts.get("n_latents") or sae["n_latents"] or (sae["expansion"] or 8) * d_model,
        normalize=sae["normalize"],
        subtracts_bias=True,
        dtype="float32",
        k=sae["k"] if sae["activation"] in {"topk", "multi_topk", "batchtopk"} else None,
        subject=subject["model"],
        revision=subject["revision"],
        layers=layers,
        site=None if subject["hook"] else subject["site"],
        hook_point=subject["hook"] or (found.get("hook") if len(layers) <= 1 else None),
        lens=sae.get("lens"),
        context_length=data["context_length"],
        prepend_bos=data["prepend_bos"],
    )


def _layers(subject: dict[str, Any], found: dict[str, Any]) -> tuple[int, ...]:
    """Return the blocks that a job reads, by its config and by what its attempt found in the model."""
    if subject.get("layers") is not None:
        return tuple(found.get("layers") or (() if subject["layers"] == "all" else subject["layers"]))
    layer = subject["layer"]
    if layer is None and subject["hook"] is None and "n_layers" in found:
        layer = default_layer(found["n_layers"])
    return () if layer is None else (layer,)
