"""What the metric family `layers` finds of latents planted in a stand-in of four layers, beside what was planted.

The AUC is the share of pairs, a latent of one layer and one of all, whose entropies over layers are in that order.
"""

import json
import tempfile
from pathlib import Path

import torch

from orchestrator.config.evaluation.layers import LayersOptions
from tests.unit.worker.evaluation.layered import ALONE, EVERYWHERE, IN_TURN, LAYERS, layered_contexts, planted_latents
from worker.evaluation.layers import measure
from worker.evaluation.metric import Measured, SubjectSae


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        contexts = layered_contexts(Path(folder))
        (found,) = measure([SubjectSae(1, "planted", planted_latents())], contexts, LayersOptions(prompt="tom"))
    assert isinstance(found, Measured), found
    scores = {(score.metric, score.variant): score.value for score in found.scores}
    # Tokens are uniform: a latent of one token at one layer has mass 1, at all layers L, and so one of L in turn.
    alone, everywhere, in_turn = ALONE, EVERYWHERE * LAYERS, IN_TURN * LAYERS
    several = EVERYWHERE + IN_TURN
    planted = {
        "AUC": (auc(found), 1.0),
        "var_layer": (scores["var_layer", ""], (LAYERS**2 - 1) / 12),
        "var_ratio_latent": (scores["var_ratio_latent", ""], (everywhere + in_turn) / (alone + everywhere + in_turn)),
        "var_ratio_token": (scores["var_ratio_token", ""], everywhere / (everywhere + in_turn)),
        "layer_dip": (scores["layer_dip", ""], several / (ALONE + several) / (2 * LAYERS)),
        "single_layer_share": (scores["single_layer_share", ""], ALONE / (ALONE + several)),
    }
    print(f"{'':>20}{'found':>10}{'planted':>10}")
    for name, (value, expected) in planted.items():
        print(f"{name:>20}{value:>10.4f}{expected:>10.4f}")
    print(json.dumps({name: dict(zip(("found", "planted"), both, strict=True)) for name, both in planted.items()}))


def auc(found: Measured) -> float:
    """Return how surely entropy tells a latent of one layer from one of several; ties count half."""
    table = found.files["latents.json"]
    entropy = dict(zip(table["latents"], table["entropy"], strict=True))
    pairs = [(entropy[one], entropy[other]) for one in range(ALONE) for other in range(ALONE, len(entropy))]
    return sum(1.0 if one < other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)


if __name__ == "__main__":
    main()
