"""Synthetic vectors: their statistics, and that word, data.seed and position alone decide them."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import Planted
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from worker.activations.source import HookSlots
from worker.activations.synthetic_source import BLOCK, Dictionary, SyntheticActivations
from worker.sae.normalize import normalize

GAUSSIAN = "synthetic:gaussian?d_model=16"
PLANTED = "synthetic:planted?d_model=16&latents=200&k=3&exponent=1.5&noise=0.05"
BOTH = pytest.mark.parametrize("word", [GAUSSIAN, PLANTED])


def config(word: str, *, batch: int = 96, kind: str = "none", seed: int = 0, **training: Any) -> JobConfig:
    return parse(
        {
            "subject": {"model": word},
            "data": {"seed": seed},
            "sae": {"normalize": kind},
            "training": {"batch_tokens": batch, "shuffle_tokens": batch * 4, "heldout_tokens": 5000} | training,
        }
    )


def drawn(one: JobConfig, n: int, *, start: int = 0) -> Tensor:
    """Return the vectors of n batches, from a position on, of a source of its own."""
    stream = SyntheticActivations(one.subject.model).stream([one], start_tokens=start)
    return torch.cat([batch for ((batch,),) in islice(stream, n)])


@BOTH
@pytest.mark.parametrize("kind", ["none", "unit", "layer_norm"])
def test_batches_do_not_decide_what_a_position_holds(word: str, kind: str) -> None:
    whole = drawn(config(word, batch=6000, kind=kind), 2)
    assert whole.dtype == torch.float32
    for batch in (96, 1000, 4096):
        assert torch.equal(
            drawn(config(word, batch=batch, kind=kind), 12_000 // batch), whole[: 12_000 // batch * batch]
        )


@BOTH
def test_a_stream_goes_on_from_any_position(word: str) -> None:
    one = config(word)
    whole = drawn(one, 100)
    assert len(whole) > 2 * BLOCK
    for start in (0, 1, 42, 43, 85, 99):  # batch 42 lies across the border of two blocks
        assert torch.equal(drawn(one, 100 - start, start=start * 96), whole[start * 96 :])


@pytest.mark.parametrize(
    ("word", "values"), [(GAUSSIAN, [-0.013905, -1.38206, -0.773995]), (PLANTED, [-0.176445, -0.099551, -0.448675])]
)
def test_a_word_names_the_same_vectors_for_good(word: str, values: list[float]) -> None:
    """Where this fails and ought to, raise FORMAT: jobs that began with the old vectors must not go on with these."""
    assert drawn(config(word), 1)[0, :3].tolist() == pytest.approx(values, abs=2e-6)


@BOTH
def test_seeds_decide_and_the_heldout_set_is_apart(word: str) -> None:
    source, one, other = SyntheticActivations(word), config(word), config(word, seed=1)
    trained, (heldout,) = drawn(one, 60), source.heldout(one)
    assert heldout.shape == (5000, 16)
    assert torch.equal(heldout, source.heldout(other)[0])
    rows = {
        row.numpy().tobytes() for row in torch.cat([trained, drawn(other, 60), drawn(config(word + "&seed=1"), 60)])
    }
    assert len(rows) == 3 * len(trained)
    assert not rows & {row.numpy().tobytes() for row in heldout}
    assert torch.equal(source.sample(one, 700)[0], trained[:700])


def test_jobs_share_one_tensor_where_they_normalise_alike() -> None:
    configs = [config(PLANTED, kind=kind) for kind in ("unit", "none", "unit")]
    for (one,), (raw,), (again,) in islice(SyntheticActivations(PLANTED).stream(configs, start_tokens=96), 3):
        assert one is again
        assert torch.equal(one, normalize(raw, "unit").vectors)


def test_what_does_not_fit_together_is_refused() -> None:
    source = SyntheticActivations(GAUSSIAN)
    with pytest.raises(ConfigError, match=r"subject\.model = 'synthetic:planted"):
        source.key(config(PLANTED))
    with pytest.raises(ConfigError, match=r"data\.seed is 0 for one job and 1"):
        next(source.stream([config(GAUSSIAN), config(GAUSSIAN, seed=1)], start_tokens=0))
    with pytest.raises(ConfigError, match=r"training\.heldout_tokens = 1: fvu needs two vectors"):
        source.heldout(config(GAUSSIAN, heldout_tokens=1))


def test_slots_differ_by_normalisation_alone() -> None:
    slots = HookSlots(SyntheticActivations(GAUSSIAN))
    assert [slots.find(config(GAUSSIAN, kind=kind)) for kind in ("unit", "none", "unit")] == [0, 1, 0]
    assert slots.sample(1).shape == (16_384, 16)
    assert slots.sample(1) is slots.sample(1)
    assert slots.source.flops(slots.configs([0, 1])) == 0


def test_nothing_can_be_patched() -> None:
    source = SyntheticActivations(GAUSSIAN)
    with pytest.raises(ConfigError, match=r"subject\.model = 'synthetic:gaussian.*no logits"):
        source.run_patched(config(GAUSSIAN), torch.zeros(1, 4, dtype=torch.int64), [torch.clone])


def test_the_gaussian_is_standard_and_independent() -> None:
    x = drawn(config(GAUSSIAN, batch=20_000), 10).double()
    n = len(x)
    assert x.mean(0).abs().max() < 5 / n**0.5
    covariance = x.T @ x / n
    assert (covariance - torch.eye(16)).abs().max() < 6 * (2 / n) ** 0.5
    assert (x.pow(4).mean() - 3).abs() < 5 * (96 / x.numel()) ** 0.5  # the fourth moment varies by 96
    assert (x[1:] * x[:-1]).mean().abs() < 5 / (x.numel()) ** 0.5  # of neighbours


def test_planted_directions_are_drawn_by_a_power_law() -> None:
    recipe, n = Planted(latents=500, k=4, exponent=1.25), 200_000
    which = Dictionary(recipe).choose(np.random.default_rng(0), n)
    assert which.shape == (n, 4)
    counts = np.bincount(which.ravel(), minlength=500)
    expected = np.arange(1, 501) ** -1.25
    expected *= 4 * n / expected.sum()
    assert len(counts) == 500
    assert (np.abs(counts - expected) < 5.5 * np.sqrt(expected)).all()
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(counts[:100]), 1)[0]
    assert slope == pytest.approx(-1.25, abs=0.03)


def test_a_planted_vector_is_a_sum_of_few_directions() -> None:
    word = "synthetic:planted?d_model=64&latents=32&k=2&exponent=0&noise=0"
    directions = torch.from_numpy(Dictionary(Planted(latents=32, k=2, exponent=0.0, noise=0.0)).directions).double()
    assert directions.norm(dim=1).sub(1).abs().max() < 1e-6
    x = drawn(config(word), 20).double()
    found = torch.linalg.lstsq(directions.T, x.T).solution.T  # 32 directions in 64 dimensions: the sum is unique
    assert (found @ directions - x).abs().max() < 1e-5
    strong = found > 1e-4
    assert set(strong.sum(1).tolist()) == {1, 2}
    alone = found[strong.sum(1) == 2][strong[strong.sum(1) == 2]]
    assert 0.5 - 1e-5 < alone.min() < 0.52
    assert 1.48 < alone.max() < 1.5 + 1e-5
    assert found[~strong].abs().max() < 1e-5


def test_noise_is_per_coordinate() -> None:
    quiet, loud = (drawn(config(f"synthetic:planted?d_model=16&noise={noise}"), 200).double() for noise in (0, 0.5))
    assert (loud - quiet).std() == pytest.approx(0.5, rel=0.01)


def test_all_data_seeds_see_one_dictionary() -> None:
    word = "synthetic:planted?d_model=64&latents=8&k=3&noise=0"
    both = torch.cat([drawn(config(word, seed=seed), 5) for seed in (0, 1)])
    assert torch.linalg.matrix_rank(both, rtol=1e-5) == 8
    assert torch.linalg.matrix_rank(torch.cat([both, drawn(config(word + "&seed=1"), 5)]), rtol=1e-5) == 16
