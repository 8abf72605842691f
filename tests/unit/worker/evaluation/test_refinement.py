"""Refined activations against scipy's solver, and the shrinkage of a ReLU SAE that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from orchestrator.config.evaluation.downstream import DownstreamOptions
from tests.made_saes import inputs, made
from tests.unit.worker.evaluation.tiny_contexts import constant_sae, entries, identity_sae, random_sae, tiny_context
from worker.evaluation.downstream import measure, refinement
from worker.evaluation.downstream.refinement import non_negative_least_squares, refine
from worker.evaluation.metric import Measured
from worker.sae.inference import InferenceSae


def test_values_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(50, 6, 16, generator=generator), dim=-1)
    target = torch.randn(50, 16, generator=generator)
    start = torch.rand(50, 6, generator=generator)
    start[:, 5] = 0  # did not fire
    found = non_negative_least_squares(directions, target, start=start)
    assert (found[:, 5] == 0).all()
    for rows, vector, values in zip(directions[:, :5], target, found[:, :5], strict=True):
        wanted, _ = nnls(rows.T.double().numpy(), vector.double().numpy())
        np.testing.assert_allclose(values, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "unit", "layer_norm"])
def test_no_reconstruction_gets_worse(kind: str) -> None:
    x = inputs().view(4, 16, -1)
    for sae in (made("topk", kind), made("relu", kind)):  # type: ignore[arg-type]
        refined = refine(sae, x)
        before, after = (x - sae(x)).norm(dim=-1), (x - refined.reconstructed).norm(dim=-1)
        assert (after <= before * (1 + 1e-5)).all()
        assert after.sum() < before.sum()


def test_many_active_latents_are_refined_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ReLU SAE that is not sparse: the products of 10,000 rows with each other are 400 MB a token."""
    x, sae = inputs().view(4, 16, -1), made("relu", "layer_norm")
    whole = refine(sae, x)
    gathered: list[int] = []

    def noted(directions: torch.Tensor, target: torch.Tensor, *, start: torch.Tensor) -> torch.Tensor:
        gathered.append(start.shape[1] * max(directions.shape[1:]) * len(start))
        assert len(start) < 64
        return non_negative_least_squares(directions, target, start=start)

    monkeypatch.setattr(refinement, "non_negative_least_squares", noted)
    monkeypatch.setattr(refinement, "_CHUNK_VALUES", 2 * sae.facts.n_latents**2)
    torch.testing.assert_close(refine(sae, x).reconstructed, whole.reconstructed, rtol=1e-2, atol=1e-2)
    assert max(gathered) <= 2 * sae.facts.n_latents**2


def test_where_no_latent_fires_nothing_is_refined() -> None:
    x, silent = inputs().view(4, 16, -1), constant_sae(torch.ones(inputs().shape[1]))
    refined = refine(silent, x)
    assert refined.reconstructed.equal(silent(x))
    assert not refined.n_active.any()


def test_known_shrinkage_is_found(tmp_path: Path) -> None:
    """ReLU latents that give half of what they should: z* = 2 z."""
    context = tiny_context(tmp_path)
    whole = identity_sae(16)
    half = InferenceSae(replace(whole.facts, selection="relu", k=None), whole.tensors() | {"W_enc": whole.W_enc / 2})
    (found,) = measure(entries(half), context, DownstreamOptions(refined=True))
    assert isinstance(found, Measured)
    scores = {(s.metric, s.variant): s for s in found.scores}
    assert scores["refinement", "mean change"].value == pytest.approx(1, abs=1e-3)
    assert scores["refinement", "share increased"].value == 1
    assert scores["refinement", "mean change"].n == int((context.vectors != 0).sum())
    assert scores["delta_ce", "refined"].value == pytest.approx(0, abs=1e-3)
    assert scores["fvu", "refined"].value < 1e-6
    assert scores["kl", ""].value > 0.01


def test_refined_latents_cost_the_model_no_error_of_their_own(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    (found,) = measure(entries(random_sae(16)), context, DownstreamOptions(refined=True, test_k=(4,)))
    assert isinstance(found, Measured)
    fvu = {s.variant: s.value for s in found.scores if s.metric == "fvu"}
    assert fvu["refined"] < fvu["k=4"]
