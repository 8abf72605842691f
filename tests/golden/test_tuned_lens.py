"""A tuned lens of the language model that ships: below the logit lens at every layer, and undone without a loss."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.lens.facts import LensFacts
from orchestrator.config.lens.reading import parse_lens
from worker.activations.heldout_split import Contexts
from worker.data import token_file
from worker.evaluation.heldout_text import HeldoutText
from worker.lens.tuned_lens import TunedLens
from worker.lens_training.divergence import Divergence
from worker.lens_training.state import LensState
from worker.subject.model import Subject, load_at_first, run_patched

CONFIG = parse_lens(
    {
        "data": {"max_tokens": 40_000},
        "optimizer": {"lr": 0.002},
        "training": {"batch_tokens": 1024, "heldout_tokens": 2048, "max_tokens": 12_288},
    }
)


class Trained(NamedTuple):
    """A lens, what it was trained on, and its KL by layer beside the logit lens'."""

    lens: TunedLens
    subject: Subject
    text: HeldoutText
    kls: list[float]
    logit_lens_kls: list[float]


def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    subject = load_at_first([CONFIG.subject])
    divergence = Divergence(subject)
    tokens = token_file.pack(CONFIG.data, subject.tokenizer, tmp_path_factory.mktemp("tokens"))
    text = HeldoutText(tokens, Contexts.of(tokens, CONFIG.reading), "python:stdlib")
    heldout = text.heldout
    logit_lens = divergence.kls(heldout.ids, heldout.is_measured, lambda _, x: x, alive=nothing)
    state = LensState(CONFIG, n_layers=divergence.n_layers, d_model=divergence.d_model)
    size = CONFIG.training.batch_tokens // CONFIG.data.context_length
    while state.tokens_seen < CONFIG.training.max_tokens:
        ids = tokens.contexts(text.contexts.run(state.tokens_seen // CONFIG.data.context_length, size))
        is_measured = torch.from_numpy(text.contexts.is_trained(ids))
        state.step(divergence, torch.from_numpy(ids), is_measured)
    tuned = divergence.kls(heldout.ids, heldout.is_measured, state.translate, alive=nothing)
    facts = LensFacts(model="shipped", fingerprint=subject.fingerprint, n_layers=6, d_model=divergence.d_model)
    return Trained(state.lens(facts), subject, text, tuned, logit_lens)


def test_kl_is_below_the_logit_lens_at_every_layer_but_the_last(trained: Trained) -> None:
    assert len(trained.kls) == 6
    shares = np.array(trained.kls[:-1]) / np.array(trained.logit_lens_kls[:-1])
    assert (shares < 0.9).all(), shares
    assert trained.kls[-1] == trained.logit_lens_kls[-1] == 0
    assert max(trained.lens.check_invertible()) < 100


def test_applied_and_undone_it_costs_the_model_nothing_at_any_layer(trained: Trained) -> None:
    """x̂ = x in lens space, put back: ΔCE and the change of every logit are those of rounding."""
    ids, lens = trained.text.heldout.ids[:4], trained.lens
    with torch.no_grad():
        clean = trained.subject.model(input_ids=ids, use_cache=False).logits
    for layer in range(lens.facts.n_layers):
        at = trained.subject.at(CONFIG.subject.model_copy(update={"layers": None, "layer": layer}))
        mapped = [0.0]

        def there_and_back(x: Tensor, layer: int = layer, mapped: list[float] = mapped) -> Tensor:
            y = lens.into(layer, x)
            mapped[0] = float((y - x).abs().max())
            return lens.back(layer, y)

        patched = run_patched([at], ids, [there_and_back])
        assert (mapped[0] > 0.1) == (layer < 5), "a lens that does something, but to the last layer"
        delta_ce = cross_entropy(patched, ids) - cross_entropy(clean, ids)
        assert abs(delta_ce) < 1e-4, (layer, delta_ce)
        assert (patched - clean).abs().max() < 1e-2, layer


def cross_entropy(logits: Tensor, ids: Tensor) -> float:
    log_p = logits[:, :-1].double().log_softmax(-1)
    return -float(log_p.gather(-1, ids[:, 1:, None]).mean())
