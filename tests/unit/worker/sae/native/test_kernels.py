"""The kernels in C against plain torch: values, indices, every gradient, the optimiser, whole trainings."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.evaluation.ablation.effects import affected_share
from worker.evaluation.reconstruction import measure_reconstruction
from worker.evaluation.token_losses import log_sum_exp, softmax_
from worker.sae.dead_latents import count_by_layer
from worker.sae.native.kernels import Kernels, kernels_for, use
from worker.sae.sparse import by_latent
from worker.sae.tiled_encode import select
from worker.sae.topk import keep_top_k_, plain_top_k, top_k, top_values
from worker.sae.train_state import TrainState, train_step

D_MODEL, N_TOKENS = 24, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernels(folder: Path) -> Iterator[Kernels]:
    if failed := use(folder):
        pytest.skip(failed)
    found = kernels_for()
    assert found is not None
    yield found
    use(None)


def _rows(kind: str, n_rows: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n_rows, n, generator=generator)
    match kind:
        case "many ties":
            return rows.round()
        case "all alike":
            return torch.zeros(n_rows, n)
        case "no numbers":
            return rows.masked_fill_(torch.rand(n_rows, n, generator=generator) < 0.05, torch.nan)
        case "infinite":
            rows.masked_fill_(torch.rand(n_rows, n, generator=generator) < 0.3, -torch.inf)
            rows[n_rows // 2] = torch.inf
        case "rising":
            return rows.sort(dim=1).values
    return rows


@pytest.mark.parametrize("kind", ["random", "many ties", "all alike", "no numbers", "infinite", "rising"])
@pytest.mark.parametrize("n", [1, 5, 16, 17, 33, 64, 100, 127, 129, 255, 512, 1000, 4096, 70_001])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_selection_is_the_first_of_a_stable_sort(kernels: Kernels, n: int, kind: str, has_bias: bool) -> None:
    """70,001: its groups have more values than those of fewer latents, and the last ones are not full."""
    rows = _rows(kind, 19, n)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(7)).round() if has_bias else None
    expected = (rows if bias is None else rows + bias).sort(dim=1, descending=True, stable=True)
    for k in (1, 2, 4, 8, 9, 16, 32, 64):
        if k <= n:
            values, indices = kernels.top_k(rows, k, bias=bias)
            assert torch.equal(indices, expected.indices[:, :k]), k
            torch.testing.assert_close(values, expected.values[:, :k], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["random", "many ties", "all alike", "no numbers", "infinite", "rising"])
@pytest.mark.parametrize("n", [2, 16, 33, 100, 1000])
def test_what_is_not_among_the_largest_is_0(kernels: Kernels, n: int, kind: str) -> None:
    for k in (1, 3, n // 3, n - 1):
        wide = torch.full((19, n + 7), 5.0)
        rows = wide[:, :n]
        rows.copy_(_rows(kind, 19, n))
        many_nan = rows.isnan().sum(1) > k  # these are all kept: the loss is none either way
        expected = rows.sort(dim=1, descending=True, stable=True)
        kept = torch.zeros(19, n).scatter_(1, expected.indices[:, :k], expected.values[:, :k])
        kept[kept < 0] = 0.0
        assert keep_top_k_(rows, k) is rows
        torch.testing.assert_close(rows[~many_nan], kept[~many_nan], rtol=0, atol=0, equal_nan=True)
        assert rows[many_nan].isnan().any(1).all()
        assert (wide[:, n:] == 5.0).all()


@pytest.mark.parametrize("place", [0, 15, 127, 4000, 4095, 70_000])
def test_one_value_that_is_no_number_comes_first_wherever_it_stands(kernels: Kernels, place: int) -> None:
    rows = torch.randn(2, 70_001 if place > 4095 else 4096, generator=torch.Generator().manual_seed(2))
    rows[1, place] = torch.nan
    values, indices = kernels.top_k(rows, 32)
    assert indices[1, 0] == place
    assert values.isnan().sum() == 1


def test_tiles_with_their_bias_added_later_select_the_same(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(8)
    x, W_enc, b_enc, b_pre = (torch.randn(*of, generator=generator) for of in ((50, 24), (300, 24), (300,), (24,)))
    watched = torch.tensor([3, 0, 299])
    found = select(x, b_pre, (W_enc, b_enc), k=7, watched=watched, tile_bytes=17 * 300 * 4)
    assert found.pre_acts is not None
    pre_acts = found.pre_acts.clone()
    use(None)
    expected = select(x, b_pre, (W_enc, b_enc), k=7, watched=watched)
    assert torch.equal(found.top_indices, expected.top_indices)
    torch.testing.assert_close(found.top_acts, expected.top_acts)
    torch.testing.assert_close(pre_acts, expected.pre_acts)


def test_they_take_contiguous_float32_rows_of_a_cpu_and_a_k_that_pays(kernels: Kernels) -> None:
    rows = torch.randn(8, 200)
    assert kernels_for(rows, k=64) is kernels
    for other in (rows.double(), rows.bfloat16(), rows.T):
        assert kernels_for(other) is None
        assert torch.equal(top_k(other, 3), plain_top_k(other, 3))
    assert kernels_for(rows, k=65) is None
    assert torch.equal(top_values(rows, 65)[1], plain_top_k(rows, 65))
    use(None)
    assert kernels_for(rows) is None


def test_places_by_latent_are_in_the_order_of_the_tokens(kernels: Kernels) -> None:
    indices = torch.randint(0, 7, (50, 3), generator=torch.Generator().manual_seed(0))
    found = by_latent(indices, 9)
    use(None)
    expected = by_latent(indices, 9)
    assert torch.equal(found.order, expected.order)
    assert torch.equal(found.bounds, expected.bounds)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_tokens_since_a_latent_fired_are_those_of_plain_torch(kernels: Kernels, n_layers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    indices = torch.rand(60, 20, generator=generator).argsort(dim=1)[:, :4].contiguous()
    acts = torch.randn(60, 4, generator=generator).relu()
    since = torch.randint(0, 1000, (20, n_layers), generator=generator)
    found = count_by_layer(acts, indices, since)
    use(None)
    assert torch.equal(found, count_by_layer(acts, indices, since))


CASES: list[dict[str, Any]] = [
    {},
    {"sae": {"k": 1}},
    {"sae": {"activation": "multi_topk"}},
    {"sae": {"aux_coef": 0.0}},
    {"sae": {"n_latents": 500, "k_aux": 8}},
    {"optimizer": {"clip_norm": 0.01}},
    {"optimizer": {"ema": 0.9, "betas": [0.5, 0.9]}},
    {"training": {"encode_dtype": "bfloat16"}},
    {"sae": {"activation": "jumprelu"}},
    {"sae": {"activation": "batchtopk"}},
    {"subject": {"layers": [0, 1, 2]}},
]


def _config(case: dict[str, Any]) -> JobConfig:
    own: dict[str, Any] = {
        "sae": {"n_latents": 80, "k": 5},
        "training": {"batch_tokens": N_TOKENS, "shuffle_tokens": N_TOKENS, "max_tokens": 10**6,
                     "dead_after_tokens": 2 * N_TOKENS},
    }  # fmt: skip
    return parse({part: own.get(part, {}) | case.get(part, {}) for part in own | case})


def _trained(config: JobConfig, n_layers: int, n_steps: int = 8) -> tuple[TrainState, list[Tensor]]:
    """Return a state after some steps, the last ones with dead latents, and the last step's gradients."""
    x = torch.randn(N_TOKENS * n_layers, D_MODEL, generator=torch.Generator().manual_seed(3)) + 0.3
    state = TrainState.fresh(config, x, n_layers=n_layers)
    with torch.no_grad():
        state.model.W_enc[: state.model.n_latents // 2] *= 1e-3  # too weak to be selected, half of them positive
    for _ in range(n_steps):
        train_step(state, x, config)
    before = copy.deepcopy(state)
    before.differentiate(x, config)
    gradients = [parameter.grad for parameter in before.model.parameters()]
    return state, [each.clone() for each in gradients if each is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_is_that_of_plain_torch(kernels: Kernels, case: dict[str, Any]) -> None:
    config, n_layers = _config(case), len(case.get("subject", {}).get("layers", [0]))
    found, gradients = _trained(config, n_layers)
    x = torch.randn(N_TOKENS * n_layers, D_MODEL, generator=torch.Generator().manual_seed(4))
    fvu = measure_reconstruction(found.model, x)
    use(None)
    expected, plain_gradients = _trained(config, n_layers)
    assert found.aux_tokens == expected.aux_tokens
    has_aux = config.sae.aux_coef > 0 and config.sae.activation in {"topk", "multi_topk"}
    assert not has_aux or found.sums[1] > 0, "AuxK takes part"
    assert len(gradients) == len(plain_gradients)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-3, atol=1e-5)
    for name, value in expected.tensors().items():
        assert torch.allclose(found.tensors()[name].double(), value.double(), rtol=1e-3, atol=1e-5), name
    assert measure_reconstruction(found.model, x).fvu == pytest.approx(fvu.fvu, rel=1e-5)


@pytest.mark.parametrize("case", [{}, {"sae": {"activation": "multi_topk"}}], ids=str)
def test_the_number_of_threads_changes_no_bit_of_what_the_kernels_compute(
    kernels: Kernels, case: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(5)
    x, W_enc, W_dec = (torch.randn(rows, D_MODEL, generator=generator) for rows in (301, 80, 80))
    found: dict[int, list[Tensor]] = {}
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        acts, indices = kernels.top_k(torch.randn(301, 80, generator=torch.Generator().manual_seed(6)), 12)
        error, squares = kernels.reconstruction_error(x, acts.relu_(), indices, W_dec, x[0].clone())
        out = torch.empty(80, D_MODEL), torch.empty(80), torch.empty(80, D_MODEL), torch.empty(D_MODEL)
        parts = [(3, error), (12, error.flip(0).contiguous())][-2 if case else -1 :]
        kernels.gradients(parts, (acts, indices), x, (W_enc, W_dec), out)
        found[threads] = [acts, indices, error, squares, *out]
    torch.set_num_threads(before)
    for threads in (2, 5):
        for value, expected in zip(found[threads], found[1], strict=True):
            assert torch.equal(value, expected)


def test_a_weight_that_is_no_number_reaches_the_loss(kernels: Kernels) -> None:
    config = _config({})
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(3))
    state = TrainState.fresh(config, x)
    with torch.no_grad():
        state.model.W_enc[3, 0] = torch.nan
    train_step(state, x, config)
    assert not state.sums.isfinite().all()


@pytest.mark.parametrize("vocabulary", [1, 7, 16, 100, 4097])
def test_normalisers_and_probabilities_of_logits_are_those_of_plain_torch(kernels: Kernels, vocabulary: int) -> None:
    logits = 3 * torch.randn(27, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    given = logits.clone()
    normaliser = log_sum_exp(logits)
    assert torch.equal(logits, given)
    assert torch.equal(softmax_(logits), normaliser)
    torch.testing.assert_close(normaliser.double(), given.double().logsumexp(-1), rtol=2e-7, atol=5e-7)
    torch.testing.assert_close(logits.double(), given.double().softmax(-1), rtol=2e-6, atol=1e-30)
    use(None)
    assert torch.equal(softmax_(given.clone()), log_sum_exp(given))
    torch.testing.assert_close(log_sum_exp(given), normaliser, rtol=2e-7, atol=5e-7)


@pytest.mark.parametrize("kind", ["random", "many ties", "all alike", "rising"])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 1025, 4096])
def test_the_median_is_exact_and_so_is_what_lies_around_it(kernels: Kernels, kind: str, n: int) -> None:
    rows, others, of = _rows(kind, 9, n), _rows("random", 4, n).round(decimals=1), torch.arange(9) % 4
    delta = rows - others[of]
    found = kernels.around_median_(rows, others, of)
    assert torch.equal(rows, delta)
    median = delta.median(dim=1).values
    assert torch.equal(found[:, 0], median.double())
    left = (delta - median[:, None]).double()
    torch.testing.assert_close(found[:, 1], left.abs().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[:, 2], left.square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [3, 17, 4096])
def test_the_median_is_exact_however_values_lie(kernels: Kernels, n: int) -> None:
    usual = _rows("random", 9, n)
    far = torch.where(usual > 2, usual * 1e20, usual)
    for rows in (usual * 1e30, usual * 1e-42, usual + 1e6, usual.pow(9), usual.exp(), far, -far):
        median = rows.median(dim=1).values
        found = kernels.around_median_(rows, torch.zeros(1, n), torch.zeros(9, dtype=torch.int64))
        assert torch.equal(found[:, 0], median.double())


def test_the_share_of_logits_that_change_is_that_of_plain_torch(kernels: Kernels) -> None:
    ablated, clean, first = _rows("random", 5 * 16, 501).view(5, 16, 501), _rows("many ties", 30, 501), torch.arange(5)
    ablated[2] = clean[2:18]  # of this one nothing changes
    found = affected_share(ablated.clone(), clean, first)
    use(None)
    torch.testing.assert_close(found, affected_share(ablated, clean, first), rtol=1e-6, atol=0, equal_nan=True)
    assert found.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_have_no_normaliser(kernels: Kernels, value: float) -> None:
    logits = torch.zeros(2, 40)
    logits[1, 17] = value
    assert log_sum_exp(logits).isfinite().tolist() == [True, False]
    assert softmax_(logits).isfinite().tolist() == [True, False]


def test_adams_second_moment_is_that_of_torch_for_a_long_memory(kernels: Kernels) -> None:
    """1 - beta2 in float32 is 1e-5 off where beta2 is 0.999, and 1e-3 where it is 0.99999."""
    config = _config({"optimizer": {"betas": [0.9, 0.99999]}})
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(3))
    states = []
    for _ in range(2):
        state = TrainState.fresh(config, x)
        train_step(state, x, config)
        states.append(state.optimizer.exp_avg_sq)
        use(None)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-12)


def test_latents_of_a_view_are_counted_where_they_are(kernels: Kernels) -> None:
    listed = torch.rand(60, 20, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    acts, since = torch.ones(60, 4), torch.zeros(20, 1, dtype=torch.int64)
    found = count_by_layer(acts, listed[:, :4], since)
    use(None)
    assert torch.equal(found, count_by_layer(acts, listed[:, :4], since))
