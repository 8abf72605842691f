"""What an export makes of an SAE that a format has no place for."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker.formats import registry
from worker.sae.inference import InferenceSae
from worker.saes.exporting import at_layer


def of_layers(*layers: int) -> InferenceSae:
    facts = SaeFacts(
        selection="topk", k=2, d_model=4, n_latents=8, normalize="none", subtracts_bias=True, dtype="float32",
        site="resid_post", layers=layers,
    )  # fmt: skip
    weights = {"W_enc": torch.randn(4, 8), "W_dec": torch.randn(8, 4)}
    return InferenceSae(facts, weights | {"b_enc": torch.zeros(8), "b_dec": torch.zeros(4)})


def test_an_sae_of_several_layers_is_written_as_one_of_them_where_it_is_named(tmp_path: Path) -> None:
    several = of_layers(0, 2, 5)
    with pytest.raises(ConfigError, match="reads layers 0, 2, 5") as refused:
        registry.write(several, tmp_path / "all", format="saelens")
    assert "--layer N" in refused.value.hint
    registry.write(at_layer(several, 2), tmp_path / "one", format="saelens")
    found = registry.read(tmp_path / "one").sae
    assert found.facts.layers == (2,)
    assert torch.equal(found.W_dec, several.W_dec)
    with pytest.raises(ConfigError, match="does not read layer 3") as wrong:
        at_layer(several, 3)
    assert wrong.value.hint == "It reads: 0, 2, 5."
