"""SAEs of our own, after some real steps on real activations."""

import torch
from torch import Tensor

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import Normalize
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from tests.made_saes import facts
from worker.sae.inference import InferenceSae
from worker.sae.normalize import normalize
from worker.sae.train_state import TrainState
from worker.trainer.train import train

K, N_LATENTS = 8, 256
_BATCH = 128


def ours(activation: Activation, kind: Normalize, x: Tensor) -> InferenceSae:
    """Return an SAE trained on raw activations, in the form in which it is used."""
    sizes = {"batch_tokens": _BATCH, "shuffle_tokens": _BATCH, "max_tokens": len(x), "first_point_tokens": len(x)}
    chosen = {"activation": activation, "n_latents": N_LATENTS, "k": K, "normalize": kind}
    config = parse({"sae": chosen, "training": sizes})
    vectors = normalize(x, kind).vectors
    state = TrainState.fresh(config, vectors[:512])
    for _ in train(state, vectors.split(_BATCH), config=config, heldout=vectors[:256]):  # type: ignore[no-untyped-call]
        pass
    selection = "topk" if activation == "multi_topk" else activation
    known = SaeFacts.from_json(
        facts(selection, kind).as_json() | {"d_model": x.shape[1], "n_latents": N_LATENTS, "k": K}
    )
    with torch.no_grad():
        sae = InferenceSae.from_trained(state.best().eval(), known)
        if activation != "jumprelu" or sae.threshold is None:
            return sae
        # After so few steps all thresholds are one number, and high above what the average of the weights reaches.
        return sae.changed({"threshold": sae.threshold * torch.linspace(0.3, 0.7, N_LATENTS)})
