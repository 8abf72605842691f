"""A dictionary that was planted is found again, from activations alone."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.validation import parse
from worker.sae.train_state import TrainState
from worker.trainer.train import train

D_MODEL, N_FEATURES, N_ACTIVE, N_LATENTS, BATCH, N_STEPS = 48, 80, 4, 160, 512, 1000


def _planted(generator: torch.Generator) -> Tensor:
    directions = torch.randn(N_FEATURES, D_MODEL, generator=generator)
    return functional.normalize(directions, dim=1)


def _draw(n_tokens: int, planted: Tensor, generator: torch.Generator) -> Tensor:
    """Return sums of N_ACTIVE planted features, each 0.5 to 1.5 strong."""
    which = torch.rand(n_tokens, N_FEATURES, generator=generator).topk(N_ACTIVE, dim=1).indices
    strength = torch.rand(n_tokens, N_ACTIVE, generator=generator) + 0.5
    return torch.zeros(n_tokens, N_FEATURES).scatter(1, which, strength) @ planted


def test_the_planted_dictionary_is_recovered() -> None:
    generator = torch.Generator().manual_seed(2024)  # not the seed of the initialisation
    planted = _planted(generator)
    config = parse(
        {
            "sae": {"n_latents": N_LATENTS, "k": N_ACTIVE, "normalize": "none"},
            "training": {
                "batch_tokens": BATCH, "shuffle_tokens": BATCH, "max_tokens": N_STEPS * BATCH,
                "dead_after_tokens": 100 * BATCH,
            },
        }
    )  # fmt: skip

    def batches() -> Iterator[Tensor]:
        while True:
            yield _draw(BATCH, planted, generator)

    state = TrainState.fresh(config, _draw(8192, planted, generator))
    for _ in train(state, batches(), config=config, heldout=_draw(4096, planted, generator)):
        pass
    model = state.averaged()
    best = (planted @ model.W_dec.T).amax(1)
    assert state.untrained_fvu is not None
    assert state.untrained_fvu > 0.5
    assert best.mean() > 0.9, f"mean max cosine {best.mean():.3f}"
    assert state.curve[-1].fvu < 0.1
