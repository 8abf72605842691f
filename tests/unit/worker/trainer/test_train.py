"""The training loop: what it counts, when it measures, and that measuring changes nothing."""

import math
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from orchestrator.errors import TrainingError
from worker.evaluation.reconstruction import measure_reconstruction
from worker.sae.dead_latents import count_tokens_since_fired
from worker.sae.train_state import TrainState
from worker.trainer.train import Progress, evaluation_tokens, train

D_MODEL, BATCH = 12, 32


def _config(*, sae: dict[str, Any] | None = None, **training: Any) -> JobConfig:
    sizes = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "max_tokens": 40 * BATCH, "first_point_tokens": 2 * BATCH}
    parts = {"sae": {"n_latents": 48, "k": 3, **(sae or {})}, "training": {**sizes, **training}}
    return parse({**parts, "optimizer": {"lr": 0.005}})


def _data(n_tokens: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n_tokens, D_MODEL, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(x, dim=1)


def _train(config: JobConfig, n_batches: int = 40) -> tuple[TrainState, list[Progress]]:
    state = TrainState.fresh(config, _data(256, seed=1))
    batches = _data(n_batches * BATCH).split(BATCH)  # type: ignore[no-untyped-call]
    return state, list(train(state, batches, config=config, heldout=_data(128, seed=2)))


def _points(steps: list[Progress]) -> list[Point]:
    return [step.point for step in steps if step.point is not None]


def test_grid_is_log_spaced_in_whole_batches_and_ends_with_the_budget() -> None:
    grid = evaluation_tokens(_config(first_point_tokens=100, max_tokens=1000))
    assert grid == [128, 160, 192, 224, 256, 288, 352, 416, 480, 576, 704, 800, 960, 1024]
    assert all(tokens % BATCH == 0 for tokens in grid)
    assert evaluation_tokens(_config(first_point_tokens=10**9)) == [40 * BATCH]


def test_every_step_is_yielded_and_points_lie_on_the_grid() -> None:
    config = _config()
    state, steps = _train(config)
    assert [step.tokens_seen for step in steps] == [BATCH * i for i in range(1, 41)]
    points = _points(steps)
    assert [point.tokens_seen for point in points] == evaluation_tokens(config)
    assert state.curve == points
    assert points[-1].fvu < points[0].fvu < (state.untrained_fvu or 0)
    for point in points:
        assert all(value is not None and math.isfinite(value) for value in point[:-2])
        assert point.l0 <= 3
        assert point.aux_loss == 0
        assert point.dead_share == 0
    assert points[-1].wall_seconds >= points[0].wall_seconds > 0


@pytest.mark.parametrize(("ema", "lr", "is_raw"), [(0.999, 0.005, True), (0.9, 0.1, False)])
def test_what_is_reported_and_kept_is_the_better_of_average_and_weights(ema: float, lr: float, is_raw: bool) -> None:
    """A long average of few small steps is the worse one, a short average of large steps the better one."""
    config = _config()
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"ema": ema, "lr": lr})})
    state, steps = _train(config)
    held = _data(128, seed=2)
    for point in _points(steps):
        assert point.fvu == min(point.fvu_raw, point.fvu_averaged)
    last = _points(steps)[-1]
    assert last.fvu_raw != last.fvu_averaged
    assert (last.fvu == last.fvu_raw) == is_raw
    assert measure_reconstruction(state.best(), held).fvu == last.fvu
    again = TrainState.restored(config, state.tensors(), state.values(), device="cpu")
    assert measure_reconstruction(again.best(), held).fvu == last.fvu


def test_batchtopk_is_evaluated_at_its_k_after_few_steps() -> None:
    """A running mean of the thresholds lags behind weights that still change."""
    state, steps = _train(_config(sae={"activation": "batchtopk", "n_latents": 96, "k": 4}))
    assert _points(steps)[-1].l0 == pytest.approx(4, rel=0.15)
    held = _data(128, seed=2)
    assert measure_reconstruction(state.best(), held).fvu == _points(steps)[-1].fvu


def test_batches_that_end_end_the_training() -> None:
    state, steps = _train(_config(), n_batches=5)
    assert len(steps) == 5
    assert state.tokens_seen == 5 * BATCH


def test_evaluation_cadence_does_not_change_training() -> None:
    often, _ = _train(_config(first_point_tokens=1))
    seldom, _ = _train(_config(first_point_tokens=10**6))
    assert len(often.curve) > len(seldom.curve) == 1
    assert often.curve[-1].fvu == seldom.curve[-1].fvu
    left_out = {"sums"}
    for name, value in often.tensors().items():
        assert name in left_out or torch.equal(value, seldom.tensors()[name]), name


def test_means_since_the_last_point_are_weighted_by_steps() -> None:
    often, _ = _train(_config(first_point_tokens=1))
    seldom, _ = _train(_config(first_point_tokens=10**6))
    tokens = [0, *(point.tokens_seen for point in often.curve)]
    for name in ("loss", "grad_norm"):
        parts = [getattr(p, name) * (p.tokens_seen - t) for p, t in zip(often.curve, tokens, strict=False)]
        assert sum(parts) / tokens[-1] == pytest.approx(getattr(seldom.curve[-1], name))


def test_decoder_rows_are_unit_after_every_step_and_in_the_average() -> None:
    config = _config()
    state = TrainState.fresh(config, _data(256, seed=1))
    batches = _data(40 * BATCH).split(BATCH)  # type: ignore[no-untyped-call]
    for _ in train(state, batches, config=config, heldout=_data(64)):
        for model in (state.model, state.averaged()):
            torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_trains(activation: str) -> None:
    _, steps = _train(_config(sae={"activation": activation}, dead_after_tokens=3 * BATCH))
    points = _points(steps)
    # JumpReLU pays for its L0 in fvu: what it lowers is their sum.
    measure = "loss" if activation == "jumprelu" else "fvu"
    assert getattr(points[-1], measure) < getattr(points[0], measure)


def test_aux_starts_once_a_latent_is_dead() -> None:
    state, steps = _train(_config(sae={"n_latents": 200, "k": 1}, dead_after_tokens=10 * BATCH))
    early = [point for point in _points(steps) if point.tokens_seen <= 10 * BATCH]
    late = _points(steps)[-1]
    assert all(point.aux_loss == point.dead_share == 0 for point in early)
    assert late.aux_loss > 0
    assert 0 < state.aux_tokens <= 30 * BATCH
    n, d, k, k_aux, seen = 200, D_MODEL, 1, 4, state.tokens_seen
    assert late.flops_dense == 12 * n * d * seen + 6 * n * d * state.aux_tokens
    assert late.flops_executed == (2 * n + 8 * k) * d * seen + 8 * k_aux * d * state.aux_tokens


def test_what_the_caller_adds_to_a_state_is_in_its_points() -> None:
    config = _config()
    state = TrainState.fresh(config, _data(256))
    state.flops_subject, state.wall_seconds = 7.0, 1000.0
    (point,) = _points(list(train(state, [_data(BATCH)] * 2, config=config, heldout=_data(64))))
    assert point.flops_subject == 7.0
    assert point.wall_seconds > 1000.0


@pytest.mark.parametrize("cut", [1, 3, 7, 60])
@pytest.mark.parametrize("dense", [False, True])
def test_silence_is_counted_to_the_token_however_the_text_is_cut(cut: int, dense: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(60, 2, generator=generator).relu()
    indices = torch.stack([torch.randperm(30, generator=generator)[:2] for _ in range(60)])
    if dense:
        acts = torch.zeros(60, 30).scatter(1, indices, acts)
    since = torch.arange(30)
    for start in range(0, 60, cut):
        part = slice(start, start + cut)
        since = count_tokens_since_fired(acts[part], None if dense else indices[part], since)
    full = acts if dense else torch.zeros(60, 30).scatter(1, indices, acts)
    for latent in range(30):
        fired = (full[:, latent] > 0).nonzero()
        assert since[latent] == (59 - fired[-1].item() if len(fired) else latent + 60)


def test_a_loss_that_is_not_finite_ends_with_a_nan_point() -> None:
    config = _config(max_tokens=400 * BATCH, first_point_tokens=400 * BATCH)
    state = TrainState.fresh(config, _data(256))
    good, bad = _data(BATCH), torch.full((BATCH, D_MODEL), math.nan)
    steps = list(train(state, [good] * 10 + [bad] + [good] * 300, config=config, heldout=_data(64)))
    assert len(steps) == 64
    assert math.isnan(_points(steps)[-1].fvu)
    assert not math.isfinite(_points(steps)[-1].loss)


def test_activations_that_do_not_vary_are_refused() -> None:
    for sample in (torch.ones(10, D_MODEL), torch.full((10, D_MODEL), math.nan), torch.zeros(0, D_MODEL)):
        with pytest.raises(TrainingError, match="variance"):
            TrainState.fresh(_config(), sample)


def test_facts_name_what_was_left_open() -> None:
    facts = TrainState.fresh(_config(), _data(256)).facts()
    assert {"d_model": 12, "n_latents": 48, "k": 3, "k_aux": 4}.items() <= facts.items()
    assert facts["lr"] > 0


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    _train(_config())
    assert torch.equal(torch.random.get_rng_state(), before)
