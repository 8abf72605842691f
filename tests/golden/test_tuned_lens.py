"""A tuned lens of the language model that ships: after a dozen steps below the logit lens at every layer."""

from pathlib import Path

import numpy as np
import torch

from orchestrator.config.lens.facts import LensFacts
from orchestrator.config.lens.reading import parse_lens
from worker.activations.heldout_split import Contexts
from worker.data import token_file
from worker.evaluation.heldout_text import HeldoutText
from worker.lens_training.divergence import Divergence
from worker.lens_training.state import LensState
from worker.subject.model import load_at_first

CONFIG = parse_lens(
    {
        "data": {"max_tokens": 40_000},
        "optimizer": {"lr": 0.002},
        "training": {"batch_tokens": 1024, "heldout_tokens": 2048, "max_tokens": 12_288},
    }
)


def test_kl_is_below_the_logit_lens_at_every_layer_but_the_last(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject = load_at_first([CONFIG.subject])
    divergence = Divergence(subject)
    tokens = token_file.pack(CONFIG.data, subject.tokenizer, tmp_path)
    text = HeldoutText(tokens, Contexts.of(tokens, CONFIG.reading), "python:stdlib")
    heldout = text.heldout

    def nothing() -> None:
        pass

    logit_lens = divergence.kls(heldout.ids, heldout.is_measured, lambda _, x: x, alive=nothing)
    state = LensState(CONFIG, n_layers=divergence.n_layers, d_model=divergence.d_model)
    size = CONFIG.training.batch_tokens // CONFIG.data.context_length
    while state.tokens_seen < CONFIG.training.max_tokens:
        ids = tokens.contexts(text.contexts.run(state.tokens_seen // CONFIG.data.context_length, size))
        is_measured = torch.from_numpy(text.contexts.is_trained(ids))
        state.step(divergence, torch.from_numpy(ids), is_measured)
    tuned = divergence.kls(heldout.ids, heldout.is_measured, state.translate, alive=nothing)
    assert len(tuned) == 6
    shares = np.array(tuned[:-1]) / np.array(logit_lens[:-1])
    assert (shares < 0.9).all(), shares
    assert tuned[-1] == logit_lens[-1] == 0
    facts = LensFacts(model="shipped", fingerprint=subject.fingerprint, n_layers=6, d_model=divergence.d_model)
    assert max(state.lens(facts).check_invertible()) < 100
