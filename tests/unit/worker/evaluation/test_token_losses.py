"""Losses of logits, piece by piece, against the plain formulas on the whole of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.job import SubjectConfig
from tests.unit.worker.subject.tiny_models import FAMILIES, VOCABULARY, save_model
from worker.evaluation import token_losses
from worker.evaluation.restart import Restart
from worker.evaluation.token_losses import HeadInPieces, WholeLogits, losses_of
from worker.subject.model import load

SOFT_CAPPED = ("gemma2",)
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
    monkeypatch.setattr(token_losses, "_piece_bytes", lambda _device: size)
    random = torch.Generator().manual_seed(0)
    clean, patched = (5 * torch.randn(SHAPE, generator=random).to(dtype) for _ in range(2))
    ids = torch.randint(SHAPE[2], SHAPE[:2], generator=random)
    before = patched.clone()
    prediction = WholeLogits.predicted(clean, ids)
    found = WholeLogits.losses(patched, ids, prediction)
    ce, kl = written_out(patched, ids, clean)
    torch.testing.assert_close(found.ce.double(), ce, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.kl.double(), kl, rtol=1e-6, atol=2e-6)
    probabilities = clean[:, :-1].double().softmax(-1)
    torch.testing.assert_close(prediction["probabilities"].double(), probabilities, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(prediction["ce"].double(), written_out(clean, ids, clean)[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(patched, before), "logits are read, not written to"
    same = WholeLogits.losses(clean, ids, prediction)
    assert torch.equal(same.ce, prediction["ce"])
    assert not same.kl.any(), "0 bit for bit"


def test_one_token_predicts_nothing() -> None:
    logits, ids = torch.randn(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)
    assert WholeLogits.losses(logits, ids, WholeLogits.predicted(logits, ids)).kl.shape == (2, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", [1, 4 * VOCABULARY * 5, 2**24])
def test_losses_by_the_head_are_those_of_whole_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, piece: int
) -> None:
    subject = load(SubjectConfig(model=str(save_model(family, tmp_path)), layer=1))
    restart = Restart.of(subject)
    if not restart.has_linear_head:
        assert isinstance(losses_of(restart), WholeLogits)
        assert family in SOFT_CAPPED
        return
    monkeypatch.setitem(token_losses._PIECE_BYTES, "cpu", piece)
    with torch.no_grad():
        restart.head.weight *= 5  # far from uniform
        if restart.head.bias is None:
            restart.head.bias = nn.Parameter(torch.randn(subject.vocabulary), requires_grad=False)
    ids = torch.arange(36).reshape(3, 12) % VOCABULARY
    stored, order = restart.capture(ids), torch.tensor([2, 0, 0])
    found = []
    for way in (HeadInPieces(restart), WholeLogits(restart)):
        clean, patched = (way.outputs(ids, stored, replacement) for replacement in (torch.clone, _exchanged))
        predicted = way.predicted(clean, ids)
        losses, reordered = way.losses(patched, ids, predicted), way.losses(patched, ids, predicted, of=order)
        found.append((predicted["ce"], *losses, *reordered))
        same = way.losses(clean, ids, predicted)
        assert torch.equal(same.ce, predicted["ce"])
        assert not same.kl.any(), "0 bit for bit"
    for by_head, plain in zip(*found, strict=True):
        torch.testing.assert_close(by_head, plain, rtol=1e-5, atol=2e-5)
    assert found[0][2].mean() > 0.01, "something was lost"


def test_a_head_that_is_not_linear_takes_whole_logits(tmp_path: Path) -> None:
    config = SubjectConfig(model=str(save_model("gpt2", tmp_path)), layer=1)
    assert isinstance(losses_of(Restart.of(load(config))), HeadInPieces)
    scaled = load(config)
    scaled.model.register_forward_hook(_halved_logits)
    assert isinstance(losses_of(Restart.of(scaled)), WholeLogits)
    low = load(config.model_copy(update={"dtype": "bfloat16"}))
    assert isinstance(losses_of(Restart.of(low)), WholeLogits)


def _exchanged(x: Tensor) -> Tensor:
    return x.roll(1, 0)


def _halved_logits(_module: nn.Module, _args: Any, output: Any) -> Any:
    output.logits = output.logits / 2
    return output
