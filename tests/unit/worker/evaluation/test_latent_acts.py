"""Activations of some latents are those that the whole SAE gives, whatever selects them; and are decoded as by it."""

import numpy as np
import pytest
import torch

from tests.made_saes import ACTIVATIONS, D_MODEL, N_LATENTS, NORMALIZATIONS, gated, inputs, made
from worker.evaluation.n2g.latent_acts import activation_of_each, find_firings
from worker.evaluation.n2g.simulated import add_decoded, decode_sums
from worker.sae.inference import InferenceSae

SAES = {f"{a} {n}": made(a, n) for a in ACTIVATIONS for n in NORMALIZATIONS} | {"gated": gated()}
X = inputs(64).view(4, 16, D_MODEL)
IS_MEASURED = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) > 0.2


@pytest.fixture(params=SAES)
def sae(request: pytest.FixtureRequest) -> InferenceSae:
    return SAES[request.param]


def test_the_activations_of_some_latents(sae: InferenceSae) -> None:
    latents = torch.tensor([3, 7, 8, 31, 47])
    wanted = sae.encode(X.flatten(0, 1))[:, latents] * IS_MEASURED.view(-1, 1)
    firings = find_firings(sae, latents, X, IS_MEASURED, lambda share: None)
    found = np.zeros(wanted.shape, dtype=np.float32)
    found[firings.positions, firings.slots] = firings.values
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert len(firings.values) == int((wanted > 1e-6).sum()) > 0
    for slot, own in enumerate(firings.by_slot(5)):
        assert (np.diff(own.positions) > 0).all()
        assert (own.slots == slot).all()


def test_one_latent_of_each_vector(sae: InferenceSae) -> None:
    rows = X.flatten(0, 1)
    latents = torch.randint(0, N_LATENTS, (64,), generator=torch.Generator().manual_seed(1))
    wanted = sae.encode(rows).gather(1, latents[:, None])[:, 0]
    torch.testing.assert_close(activation_of_each(sae, rows, latents), wanted, atol=1e-5, rtol=1e-4)


def test_the_true_activations_decode_to_the_reconstruction(sae: InferenceSae) -> None:
    everything = torch.ones_like(IS_MEASURED)
    firings = find_firings(sae, torch.arange(N_LATENTS), X, everything, lambda share: None)
    sums = torch.zeros(X.shape[:-1].numel(), D_MODEL)
    for half in (firings.slots < N_LATENTS // 2, firings.slots >= N_LATENTS // 2):
        add_decoded(sums, sae, firings.chosen(half))
    torch.testing.assert_close(decode_sums(sae, sums.view(X.shape), X), sae(X), atol=1e-4, rtol=1e-4)
