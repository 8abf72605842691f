"""A seeded training repeats the curve that is stored here: a change of the numbers is a change somebody must mean."""

import pytest
import torch
from torch.nn import functional

from orchestrator.config.validation import parse
from worker.sae.train_state import TrainState
from worker.trainer.train import train

# fvu (of the better of averaged and raw weights) and share of dead latents; made by this test on a CPU, float32, one
# thread.
STORED: dict[str, list[tuple[int, float, float]]] = {
    "topk": [(4096, 0.592099, 0.0), (8192, 0.531104, 0.0), (16384, 0.456472, 0.0), (32768, 0.370882, 0.0)],
    "multi_topk": [(4096, 0.589891, 0.0), (8192, 0.540584, 0.0), (16384, 0.466897, 0.0), (32768, 0.379846, 0.0)],
    "batchtopk": [(4096, 0.633401, 0.0), (8192, 0.545528, 0.0), (16384, 0.475917, 0.0), (32768, 0.383556, 0.0)],
    "relu": [(4096, 0.174113, 0.0), (8192, 0.0808284, 0.0), (16384, 0.0307482, 0.0), (32768, 0.00612983, 0.0)],
    "jumprelu": [(4096, 0.745924, 0.0), (8192, 0.75403, 0.0), (16384, 0.721091, 0.0), (32768, 0.558974, 0.0)],
}


@pytest.mark.parametrize("activation", ["topk", "multi_topk", "batchtopk", "relu", "jumprelu"])
def test_the_curve_is_the_stored_one(activation: str) -> None:
    config = parse(
        {
            "sae": {"activation": activation, "n_latents": 96, "k": 4},
            "optimizer": {"lr": 3e-3, "ema": 0.98, "warmup_tokens": 2048, "clip_norm": 1.0},
            "training": {
                "batch_tokens": 256, "shuffle_tokens": 256, "max_tokens": 32_768, "first_point_tokens": 4096,
                "dead_after_tokens": 8192,
            },
        }
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    planted = functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    codes = torch.rand(40_960, 64, generator=generator)
    x = functional.normalize(codes * (codes > 0.94) @ planted + 0.02, dim=1)
    state = TrainState.fresh(config, x[:4096])
    for _ in train(state, list(x[8192:].split(256)), config=config, heldout=x[4096:8192]):  # type: ignore[no-untyped-call]
        pass
    found = [(point.tokens_seen, point.fvu, point.dead_share) for point in state.curve[::4]]
    for (tokens, fvu, dead), point in zip(STORED[activation], found, strict=True):
        assert point[0] == tokens
        assert point[1] == pytest.approx(fvu, rel=2e-3)
        assert point[2] == pytest.approx(dead, abs=0.03)
