"""SAELens evaluates an SAE of ours on the same model, text and tokens: equal where the definitions are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.evaluate import Place
from benchmarks.evaluate_peers import BATCH, PAIRS, ours, saelens
from tests.peers import own_training
from worker.formats import registry

TOKENS = 128 * BATCH
"""One batch of theirs: what they average over batches is then the same, too."""
Peer = Callable[[str], Any]


def test_run_evals(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    peer("sae_lens.evals")
    place = Place.of(tmp_path / "tokens", model=None, tokens=TOKENS)
    sae = own_training.ours("topk", "none", activations)
    theirs = saelens(place, sae, tmp_path)()
    found = ours(place.context(tmp_path / "store"), sae)
    for key, name in PAIRS.items():
        assert found[key] == pytest.approx(theirs[name], rel=1e-4), name
    assert found["relative_bias", ""] == pytest.approx(theirs["relative_reconstruction_bias"], rel=1e-4)
    assert found["explained_variance", "saebench legacy"] == pytest.approx(
        theirs["explained_variance_legacy"], rel=1e-3
    )
    # Theirs counts the last position of each context, too, which has no next token.
    for metric, name in (("kl", "kl_div_with_sae"), ("kl_zero", "kl_div_with_ablation")):
        assert found[metric, ""] == pytest.approx(theirs[name], rel=0.02), name


def test_their_kl_without_the_last_position(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    evals, scaler = peer("sae_lens.evals"), peer("sae_lens.training.activation_scaler").ActivationScaler()
    place = Place.of(tmp_path / "tokens", model=None, tokens=TOKENS)
    sae = own_training.ours("relu", "none", activations)
    registry.write(sae, tmp_path / "saelens", format="saelens")
    theirs = peer("sae_lens").SAE.load_from_disk(str(tmp_path / "saelens"))
    model = peer("sae_lens.load_model").HookedProxyLM(place.subject.model, place.subject.tokenizer)
    ids = place.text.heldout.ids
    wanted = evals.get_recons_loss(
        theirs, model, scaler, ids, compute_kl=True, compute_ce_loss=True, hook_name=place.subject.hook.name
    )
    model.reset_hooks()
    found = ours(place.context(tmp_path / "store"), sae)
    for metric, name in (("kl", "kl_div_with_sae"), ("kl_zero", "kl_div_with_ablation")):
        assert found[metric, ""] == pytest.approx(float(wanted[name][:, :-1].mean()), rel=1e-4), name
