"""fvu and L0 of the held-out set, by hand."""

import pytest
import torch
from torch.nn import functional

from orchestrator.config.job import SaeConfig
from orchestrator.config.validation import parse
from worker.evaluation.reconstruction import measure_reconstruction
from worker.sae.model import SparseAutoencoder
from worker.sae.train_state import TrainState

D_MODEL = 12


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_fvu_by_hand_and_however_the_set_is_cut() -> None:
    model = SparseAutoencoder(SaeConfig(n_latents=4, k=1), D_MODEL)
    x = functional.normalize(torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(0)), dim=1) + 3
    with torch.no_grad():
        model.b_pre.copy_(x.mean(0))
    assert measure_reconstruction(model, x).fvu == pytest.approx(1.0, rel=1e-5)  # the mean explains nothing
    model = TrainState.fresh(parse({"sae": {"n_latents": 48, "k": 3}}), x).model
    whole = measure_reconstruction(model, x, chunk_tokens=100)
    found = model(x)
    by_hand = (x - found).double().square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert whole.fvu == pytest.approx(by_hand.item(), rel=1e-6)
    for chunk in (1, 7, 64):
        assert measure_reconstruction(model, x, chunk_tokens=chunk).fvu == pytest.approx(whole.fvu, rel=1e-6)
        assert measure_reconstruction(model, x, chunk_tokens=chunk).l0 == whole.l0
