"""A whole step in C against that of plain torch: losses, weights, moments, average, counters, threads, checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.compiled.compiled_step import stepper
from worker.sae.native.kernels import use
from worker.sae.native.whole_step import WholeStep
from worker.sae.train_state import Step, TrainState, train_step
from worker.trainer import checkpoint

D_MODEL, N_TOKENS, N_STEPS = 24, 299, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def _kernels(folder: Path) -> Iterator[None]:
    if failed := use(folder):
        pytest.skip(failed)
    yield
    use(None)


def _config(case: dict[str, Any]) -> JobConfig:
    own: dict[str, Any] = {
        "sae": {"n_latents": 83, "k": 5},
        "training": {"batch_tokens": N_TOKENS, "shuffle_tokens": N_TOKENS, "max_tokens": 10**6,
                     "dead_after_tokens": 2 * N_TOKENS},
    }  # fmt: skip
    return parse({part: own.get(part, {}) | case.get(part, {}) for part in own | case})


def _batches(n_layers: int = 1, *, ties: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N_STEPS, N_TOKENS * n_layers, D_MODEL, generator=generator) + 0.3
    return [*(x.round() if ties else x)]


def _start(config: JobConfig, batches: list[Tensor], *, ties: bool = False) -> TrainState:
    """Return a state of which half the latents die after two steps."""
    n_layers = len(batches[0]) // N_TOKENS
    state = TrainState.fresh(config, batches[0], n_layers=n_layers)
    with torch.no_grad():
        if ties:
            state.model.W_enc.mul_(4).round_()
            state.model.b_pre.round_()
        state.model.W_enc[: state.model.n_latents // 2] *= 1e-3  # too weak to be selected, half of them positive
    return state


def _trained(config: JobConfig, batches: list[Tensor], *, is_whole: bool, ties: bool = False) -> TrainState:
    state = _start(config, batches, ties=ties)
    step: Step = train_step
    if is_whole:
        assert WholeStep.takes(state, config)
        step = WholeStep(state, config)
    else:
        use(None)
    for x in batches:
        step(state, x, config)
    return state


CASES: list[dict[str, Any]] = [
    {},
    {"sae": {"k": 1}},
    {"sae": {"n_latents": 7, "k": 7}},
    {"sae": {"activation": "multi_topk"}},
    {"sae": {"activation": "multi_topk", "n_latents": 11, "k": 3}},  # 4k is cut at n
    {"sae": {"aux_coef": 0.0}},
    {"sae": {"n_latents": 100, "k_aux": 8}},
    {"sae": {"n_latents": 100, "k_aux": 100}},
    {"optimizer": {"ema": 0.9, "betas": [0.5, 0.99999]}},
    {"optimizer": {"warmup_tokens": 1000, "decay_tokens": 10000}},
    {"subject": {"layers": [0, 1, 2]}},
    {"subject": {"layers": [0, 1, 2]}, "sae": {"activation": "multi_topk"}},
]


def _compare(found: TrainState, expected: TrainState, *, rtol: float = 1e-3) -> None:
    assert (found.tokens_seen, found.steps_since_point, found.aux_tokens, found.optimizer.n_steps) == (
        expected.tokens_seen, expected.steps_since_point, expected.aux_tokens, expected.optimizer.n_steps,
    )  # fmt: skip
    assert torch.equal(found.tokens_since_fired, expected.tokens_since_fired)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-4, atol=1e-7)
    for name, value in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], value, rtol=rtol, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_is_that_of_plain_torch(case: dict[str, Any]) -> None:
    config, batches = _config(case), _batches(len(case.get("subject", {}).get("layers", [0])))
    found = _trained(config, batches, is_whole=True)
    assert (found.sums[1] > 0) == (found.aux_tokens > 0) == (config.sae.aux_coef > 0 and found.model.n_latents > 11)
    _compare(found, _trained(config, batches, is_whole=False))


@pytest.mark.parametrize("n_dead", [1, 40, 83])
def test_it_is_plain_torch_whichever_latents_are_dead(n_dead: int) -> None:
    config, x = _config({}), _batches()[0]
    states = [TrainState.fresh(config, x) for _ in range(2)]
    for state in states:
        with torch.no_grad():
            state.model.W_dec[::2] = state.model.W_dec[1::2][[*range(41), 0]]  # some reconstruct alike
            state.model.W_enc[:n_dead] *= 1e-3
            state.model.b_enc.fill_(-100.0 if n_dead == 83 else 0.0)  # nothing fires
        state.tokens_since_fired[:n_dead] = 10**6
        state.tokens_seen = 10**6
    WholeStep(states[0], config)(states[0], x, config)
    use(None)
    train_step(states[1], x, config)
    _compare(*states)
    assert states[0].aux_tokens == N_TOKENS


def test_of_equal_values_the_first_is_taken() -> None:
    config, batches = _config({}), _batches(ties=True)[:1]
    found, expected = (_trained(config, batches, is_whole=whole, ties=True) for whole in (True, False))
    _compare(found, expected)


@pytest.mark.parametrize("where", ["a weight", "a batch"])
def test_what_is_no_number_reaches_the_loss(where: str) -> None:
    config, x = _config({}), _batches()[0]
    state = _start(config, [x])
    with torch.no_grad():
        (state.model.W_enc if where == "a weight" else x)[3, 0] = torch.nan
    WholeStep(state, config)(state, x, config)
    assert not state.sums[0].isfinite()


def test_auxk_of_a_single_token_is_left_out() -> None:
    """Its error does not vary over the batch, which the loss would be divided by."""
    config, x = _config({}), _batches()[0]
    states = [_start(config, [x]) for _ in range(2)]
    for state in states:
        state.tokens_since_fired[:40] = state.tokens_seen = 10**6
    WholeStep(states[0], config)(states[0], x[:1], config)
    use(None)
    train_step(states[1], x[:1], config)
    _compare(*states)
    assert states[0].aux_tokens == 1
    assert states[0].sums[1] == 0


@pytest.mark.parametrize("case", [{}, {"sae": {"activation": "multi_topk"}}], ids=str)
def test_the_number_of_threads_changes_no_bit(case: dict[str, Any]) -> None:
    config, before, found = _config(case), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(1)  # the sample is measured by torch
            state = _start(config, _batches())
            torch.set_num_threads(threads)
            step = WholeStep(state, config)
            for x in _batches():
                step(state, x, config)
            found.append(state)
    finally:
        torch.set_num_threads(before)
    _assert_same(*found)


@pytest.mark.parametrize("case", [{}, {"subject": {"layers": [0, 1]}}], ids=str)
def test_a_training_that_was_interrupted_ends_bit_for_bit_where_another_does(
    case: dict[str, Any], tmp_path: Path
) -> None:
    config, batches = _config(case), _batches(len(case.get("subject", {}).get("layers", [0])))
    expected = _trained(config, batches, is_whole=True)
    state = _trained(config, batches[:5], is_whole=True)
    assert state.aux_tokens > 0
    saved = checkpoint.save(tmp_path, state, config, facts={})
    resumed = checkpoint.load(saved.uri, config)
    step = WholeStep(resumed, config)
    for x in batches[5:]:
        step(resumed, x, config)
    _assert_same(resumed, expected)
    assert resumed.values() == expected.values()


def test_steps_of_several_trainings_do_not_touch_each_other() -> None:
    """They work in the same memory, one after another."""
    cases: list[dict[str, Any]] = [{}, {"sae": {"n_latents": 40, "k": 3}}, {"sae": {"activation": "multi_topk"}}]
    expected = [_trained(_config(case), _batches(), is_whole=True) for case in cases]
    states = [_start(_config(case), _batches()) for case in cases]
    steps = [WholeStep(state, _config(case)) for state, case in zip(states, cases, strict=True)]
    for x in _batches():
        for state, step, case in zip(states, steps, cases, strict=True):
            step(state, x, _config(case))
    for state, other in zip(states, expected, strict=True):
        _assert_same(state, other)


def test_batches_may_be_of_any_size_and_layout() -> None:
    config, x = _config({}), _batches()[0]
    states = [_start(config, [x]) for _ in range(2)]
    steps = [WholeStep(state, config) for state in states]
    for part in (x[:1], x[1:7], x[7:], x[::2]):
        steps[0](states[0], part, config)
        steps[1](states[1], part.clone(memory_format=torch.contiguous_format), config)
    _assert_same(*states)


def _assert_same(one: TrainState, other: TrainState) -> None:
    for name, value in one.tensors().items():
        assert torch.equal(value, other.tensors()[name]), name


OTHERS: list[dict[str, Any]] = [
    {"sae": {"activation": "jumprelu"}},
    {"sae": {"activation": "batchtopk"}},
    {"optimizer": {"clip_norm": 1.0}},
    {"training": {"encode_dtype": "bfloat16"}},
    {"sae": {"n_latents": 83, "k_aux": 4}},
    {"sae": {"n_latents": 100, "k": 65}},
    {"sae": {"n_latents": 20_000, "k_aux": 4096}},
]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_other_trainings_are_not_its_own(case: dict[str, Any], folder: Path) -> None:
    config = _config(case)
    state = TrainState(config, D_MODEL)
    assert not WholeStep.takes(state, config)
    step, way = stepper(state, config, wanted="auto", folder=folder, say=print)
    assert (step, way) == (train_step, "kernels in C")


def test_small_steps_are_taken_so_unless_compiling_is_off(folder: Path) -> None:
    config = _config({})
    state = TrainState(config, D_MODEL)
    step, way = stepper(state, config, wanted="auto", folder=folder, say=print)
    assert isinstance(step, WholeStep)
    assert way == "kernels in C"
    assert stepper(state, config, wanted="off", folder=folder, say=print) == (train_step, "plain")
    assert stepper(state, config, wanted="auto", folder=None, say=print) == (train_step, "plain")
    assert not WholeStep.takes(state, config), "no kernels are in use"
