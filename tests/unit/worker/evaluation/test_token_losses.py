"""Losses of logits, piece by piece, against the plain formulas on the whole of them."""

import pytest
import torch
from torch import Tensor

from worker.evaluation import clean_pass
from worker.evaluation.clean_pass import predict, token_losses

SHAPE = (3, 7, 50)
WHOLE, CONTEXT = 4 * 3 * 7 * 50, 4 * 7 * 50


def written_out(logits: Tensor, ids: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and KL(clean ‖ logits), in float64."""
    logs, of_clean = (one[:, :-1].double().log_softmax(-1) for one in (logits, clean))
    ce = -logs.gather(-1, ids[:, 1:, None])[..., 0]
    return ce, (of_clean.exp() * (of_clean - logs)).sum(-1)


@pytest.mark.parametrize("size", [1, 4 * 50 * 3, CONTEXT, 2 * CONTEXT, WHOLE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_any_size_give_what_the_formulas_say(
    monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(clean_pass, "_piece_bytes", lambda _device: size)
    random = torch.Generator().manual_seed(0)
    clean, patched = (5 * torch.randn(SHAPE, generator=random).to(dtype) for _ in range(2))
    ids = torch.randint(SHAPE[2], SHAPE[:2], generator=random)
    before = patched.clone()
    prediction = predict(clean, ids)
    found = token_losses(patched, ids, prediction)
    ce, kl = written_out(patched, ids, clean)
    torch.testing.assert_close(found.ce.double(), ce, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.kl.double(), kl, rtol=1e-6, atol=2e-6)
    probabilities = clean[:, :-1].double().softmax(-1)
    torch.testing.assert_close(prediction.probabilities.double(), probabilities, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(prediction.ce.double(), written_out(clean, ids, clean)[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(patched, before), "logits are read, not written to"
    same = token_losses(clean, ids, prediction)
    assert torch.equal(same.ce, prediction.ce)
    assert not same.kl.any(), "0 bit for bit"


def test_one_token_predicts_nothing() -> None:
    logits, ids = torch.randn(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)
    assert token_losses(logits, ids, predict(logits, ids)).kl.shape == (2, 0)
