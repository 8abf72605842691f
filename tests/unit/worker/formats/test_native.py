"""A finished autoencoder on disk: what is in it, and that damage is noticed."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.config.validation import parse
from orchestrator.errors import CheckpointError
from worker.formats import registry
from worker.formats.native import load_final, save_final
from worker.sae.normalize import denormalize, normalize
from worker.sae.train_state import TrainState
from worker.trainer.train import train

FACTS = {"subject": "tiny", "lr": 0.1}
SIZES = {"batch_tokens": 32, "shuffle_tokens": 32, "max_tokens": 320, "first_point_tokens": 64}
CONFIG = parse({"sae": {"n_latents": 40, "k": 3}, "training": SIZES})


def _trained() -> TrainState:
    x = torch.randn(5 * 32 + 256, 8, generator=torch.Generator().manual_seed(0))
    state = TrainState.fresh(CONFIG, x[:256])
    for _ in train(state, x[256:].split(32), config=CONFIG, heldout=x[:64]):  # type: ignore[no-untyped-call]
        pass
    return state


def test_final_is_the_better_model_and_says_how_to_use_it(tmp_path: Path) -> None:
    state = _trained()
    saved = save_final(tmp_path, state, CONFIG, facts=FACTS)
    again = save_final(tmp_path, state, CONFIG, facts=FACTS)
    assert again == saved
    model, about = load_final(saved.uri)
    assert (about["normalize"], about["activation"], about["tokens_seen"], about["facts"]) == (
        "unit",
        "topk",
        160,
        FACTS,
    )
    x = torch.randn(9, 8)
    vectors, mean, scale = normalize(x, about["normalize"])
    assert torch.equal(model(vectors), state.best()(vectors))
    assert denormalize(model(vectors), mean, scale).shape == x.shape
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(40))
    assert json.loads((Path(saved.uri) / "config.json").read_text())["k_aux"] == 4
    (Path(saved.uri) / "sae.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        load_final(saved.uri)


def test_final_is_read_as_any_sae_is(tmp_path: Path) -> None:
    """In raw space, with the facts that the job's config holds."""
    state = _trained()
    saved = save_final(tmp_path, state, CONFIG, facts=FACTS | {"subject": {"n_layers": 4, "hook": "h.2"}})
    found = registry.detect(Path(saved.uri))
    assert (found.name, found.reasons) == ("orch", ["it is the finished SAE of a job"])
    sae, facts = registry.read(Path(saved.uri))
    x = torch.randn(9, 8)
    vectors, mean, scale = normalize(x, "unit")
    assert torch.equal(sae(x), denormalize(state.best()(vectors), mean, scale))
    assert (facts.normalize, facts.k, facts.layers, facts.hook_point) == ("unit", 3, (2,), "h.2")
