"""The untrained model."""

import pytest
import torch

from orchestrator.config.job import SaeConfig
from worker.sae.init import geometric_median, initialise
from worker.sae.model import SparseAutoencoder


def _initialised(seed: int = 0, activation: str = "topk") -> tuple[SparseAutoencoder, torch.Tensor]:
    sample = torch.randn(500, 16, generator=torch.Generator().manual_seed(9)) + 0.5
    model = SparseAutoencoder(SaeConfig.model_validate({"n_latents": 64, "k": 4, "activation": activation}), 16)
    initialise(model, sample, seed=seed)
    return model, sample


def test_geometric_median_of_known_points() -> None:
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    torch.testing.assert_close(geometric_median(line), torch.tensor([1.0, 0.0]), atol=1e-2, rtol=0)
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    torch.testing.assert_close(geometric_median(square), torch.tensor([1.0, 1.0]))
    # Fermat's point of a right triangle with legs 1: on the diagonal, each side seen under 120 degrees.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    fermat = (3 - 3**0.5) / 6
    torch.testing.assert_close(geometric_median(triangle), torch.full((2,), fermat), atol=1e-3, rtol=0)


def test_geometric_median_passes_by_an_outlier() -> None:
    points = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    points[0] = 1e6
    assert geometric_median(points).norm() < 0.2
    assert points.mean(0).norm() > 1000


def test_geometric_median_of_one_repeated_point_is_that_point() -> None:
    torch.testing.assert_close(geometric_median(torch.ones(5, 4)), torch.ones(4))


def test_decoder_is_unit_and_encoder_tied_to_it() -> None:
    model, sample = _initialised()
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(64))
    scale = model.W_enc.norm(dim=1)
    torch.testing.assert_close(scale, scale[:1].expand(64))
    torch.testing.assert_close(model.W_enc / scale[:, None], model.W_dec.data)
    assert not model.b_enc.any()
    torch.testing.assert_close(model.b_pre.data, geometric_median(sample))


@pytest.mark.parametrize("activation", ["topk", "multi_topk", "batchtopk", "relu"])
def test_output_is_as_long_as_input(activation: str) -> None:
    model, sample = _initialised(activation=activation)
    wanted, found = (sample - model.b_pre).norm(dim=1).mean(), (model(sample) - model.b_pre).norm(dim=1).mean()
    torch.testing.assert_close(found, wanted)


def test_batchtopk_starts_with_a_threshold() -> None:
    model, sample = _initialised(activation="batchtopk")
    assert int((model.eval().encode(sample).top_acts > 0).sum()) == 4 * 500


def test_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = _initialised(1)[0], _initialised(1)[0], _initialised(2)[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.W_enc, again.W_enc)
    assert not torch.equal(first.W_enc, other.W_enc)
