"""For how many tokens of text a latent has been silent, where a token has a vector at each of several layers."""

import pytest
import torch

from worker.sae.dead_latents import count_by_layer, count_tokens_since_fired, find_dead, silent_tokens

N_LAYERS, N_TOKENS, N_LATENTS, K = 3, 20, 9, 2


@pytest.mark.parametrize("dense", [False, True])
def test_every_layer_counts_as_it_would_alone(dense: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n_rows = N_LAYERS * N_TOKENS
    acts = torch.randn(n_rows, K, generator=generator).relu()
    indices = torch.stack([torch.randperm(N_LATENTS, generator=generator)[:K] for _ in range(n_rows)])
    acts[:N_TOKENS][indices[:N_TOKENS] == 4] = 0.0  # latent 4 is silent at the first layer
    if dense:
        acts = torch.zeros(n_rows, N_LATENTS).scatter(1, indices, acts)
    before = torch.arange(N_LATENTS * N_LAYERS).view(N_LATENTS, N_LAYERS)
    after = count_by_layer(acts, None if dense else indices, before)
    for layer in range(N_LAYERS):
        rows = slice(layer * N_TOKENS, (layer + 1) * N_TOKENS)
        alone = count_tokens_since_fired(acts[rows], None if dense else indices[rows], before[:, layer])
        assert torch.equal(after[:, layer], alone)
    assert after[4, 0] == before[4, 0] + N_TOKENS


def test_a_latent_is_dead_that_fires_at_no_layer() -> None:
    silent = torch.tensor([[0, 50], [50, 0], [50, 60], [60, 50]])
    assert silent_tokens(silent).tolist() == [0, 0, 50, 50]
    dead = find_dead(silent, 100, 40)
    assert dead is not None
    assert dead.tolist() == [False, False, True, True]
    assert find_dead(silent, 100, 50) is None
