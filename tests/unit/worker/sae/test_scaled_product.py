"""Products in float8 with a scale for each row: what they round to, and what they select."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from worker.activations.stream import heldout, sample, stream
from worker.data.token_file import pack
from worker.sae.scaled_product import FLOAT8, ScaledRows, scaled_top_k
from worker.sae.tiled_encode import select
from worker.sae.train_state import TrainState, train_step
from worker.subject.model import load


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(len(size)))


def test_every_value_is_rounded_to_a_sixteenth_whatever_the_size_of_its_row() -> None:
    rows = drawn(40, 64) * 10.0 ** torch.arange(-20, 20).unsqueeze(1)
    found = ScaledRows.of(rows)
    assert found.values.dtype == FLOAT8
    again = found.values.float() * found.scales
    large = rows.abs() > rows.abs().amax(1, keepdim=True) / 2**12  # the smallest lose more: they add next to nothing
    assert ((again - rows).abs() <= rows.abs() / 16 * (1 + 1e-5))[large].all()
    torch.testing.assert_close(again.abs().amax(1), rows.abs().amax(1))


def test_a_product_is_that_of_the_rounded_values() -> None:
    left, right = ScaledRows.of(drawn(17, 24)), ScaledRows.of(drawn(33, 24) * 100)
    exact = (left.values.double() * left.scales) @ (right.values.double() * right.scales).T
    torch.testing.assert_close(left.times(right).double(), exact, rtol=1e-5, atol=1e-4)


def test_what_is_not_finite_stays_so_and_what_is_zero_too() -> None:
    rows = drawn(5, 16)
    rows[1, 3], rows[2, 4], rows[3] = torch.nan, torch.inf, 0.0
    product = ScaledRows.of(drawn(7, 16)).times(ScaledRows.of(rows))
    assert product[:, 1:3].isnan().all()
    assert (product[:, 3] == 0).all()
    assert product[:, [0, 4]].isfinite().all()
    assert (scaled_top_k(drawn(7, 16), (rows, torch.zeros(5)), 2)[1] == 1).any(1).all(), "a NaN is not passed over"


@pytest.mark.parametrize("n_latents", [512, 2048])
def test_on_activations_of_a_model_less_than_one_latent_in_a_thousand_differs(n_latents: int, tmp_path: Path) -> None:
    """At k = 32, of the start and of an SAE that has been trained for a while."""
    config = parse(
        {
            "subject": {"layer": 3}, "data": {"max_tokens": 40_000}, "sae": {"n_latents": n_latents, "k": 32},
            "training": {"batch_tokens": 512, "shuffle_tokens": 4096, "heldout_tokens": 2048, "max_tokens": 16_384},
        }
    )  # fmt: skip
    subject = load(config.subject)
    text = pack(config.data, subject.tokenizer, tmp_path)
    x, state = heldout(subject, text, config), TrainState.fresh(config, sample(subject, text, config, 4096))
    for batches in (0, 16):
        for batch in islice(stream(subject, text, config), batches):
            train_step(state, batch, config)
        model = state.model
        encoder = model.W_enc.detach(), model.b_enc.detach()
        exact = select(x, model.b_pre, encoder, k=32)
        found = select(x, model.b_pre, encoder, k=32, dtype=FLOAT8)
        mark = torch.zeros(len(x), n_latents, dtype=torch.bool).scatter_(1, exact.top_indices, True)
        missed = ~mark.gather(1, found.top_indices)
        assert missed.double().mean() < 1e-3
        same = torch.where(missed, 0.0, found.top_acts)
        wanted = (found.centred @ encoder[0].T + encoder[1]).relu().gather(1, found.top_indices)
        torch.testing.assert_close(same, torch.where(missed, 0.0, wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["batchtopk", "relu", "jumprelu"])
def test_it_is_refused_where_nothing_is_computed_again(activation: str) -> None:
    values = {"sae": {"activation": activation}, "training": {"encode_dtype": "float8_e4m3"}}
    with pytest.raises(ConfigError, match=f"as topk and multi_topk do: for {activation} take bfloat16 or float32"):
        parse(values)
    assert parse({"training": {"encode_dtype": "float8_e4m3"}}).training.encode_dtype == "float8_e4m3"
