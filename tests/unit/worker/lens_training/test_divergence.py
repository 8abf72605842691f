"""KL of a lens through the model's own final norm and head, for every family, against each family written out."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import SubjectConfig
from orchestrator.errors import ConfigError
from tests.unit.worker.subject.tiny_models import FAMILIES, VOCABULARY, save_model
from worker.lens_training.divergence import Divergence
from worker.subject.model import Subject, load

_NORMS = {"gpt2": "transformer.ln_f", "gpt_neo": "transformer.ln_f", "opt": "model.decoder.final_layer_norm"}
_NORMS |= dict.fromkeys(("gpt_neox", "gpt_neox_serial"), "gpt_neox.final_layer_norm")


def subject_of(family: str, folder: Path) -> Subject:
    return load(SubjectConfig(model=str(save_model(family, folder)), layers=None))


def text(n_contexts: int = 3, context: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (n_contexts, context), generator=draw)
    return ids, torch.rand(ids.shape, generator=draw) > 0.2


def written_out(subject: Subject, family: str, hidden: Tensor) -> Tensor:
    """Return log-probabilities by the family's own names for its norm and head."""
    norm: Any = reduce(getattr, _NORMS.get(family, "model.norm").split("."), subject.model)
    logits = subject.model.get_output_embeddings()(norm(hidden))
    cap = getattr(subject.model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits.float(), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_its_own_norm_and_head(family: str, tmp_path: Path) -> None:
    subject = subject_of(family, tmp_path / "model")
    divergence = Divergence(subject)
    ids, mask = text()
    (part,) = divergence.parts(ids, mask)
    with torch.no_grad():
        own = torch.log_softmax(subject.model(ids).logits.float(), dim=-1)[mask]
    torch.testing.assert_close(part.log_p, own, rtol=1e-4, atol=1e-5)
    kls = divergence.kls(ids, mask, lambda _, x: x, alive=lambda: None)
    assert len(kls) == subject.n_layers
    assert kls[-1] == 0
    for layer, x in enumerate(part.residuals):
        x = x.clone().requires_grad_()
        log_q = written_out(subject, family, x)[mask]
        wanted = (own.exp() * (own - log_q)).sum()
        assert kls[layer] * int(mask.sum()) == pytest.approx(wanted.item(), rel=1e-4)
        assert kls[layer] > 1e-3
        gradient = torch.autograd.grad(wanted, x)[0]
        torch.testing.assert_close(torch.autograd.grad(divergence.kl(part, x), x)[0], gradient, rtol=1e-3, atol=1e-5)


def test_the_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.lens_training import divergence as module

    divergence = Divergence(subject_of("llama", tmp_path / "model"))
    ids, mask = text(5)
    whole = divergence.kls(ids, mask, lambda _, x: x, alive=lambda: None)
    monkeypatch.setattr(module, "_LOGITS", {"cpu": 2 * ids.shape[1] * VOCABULARY})
    assert [len(part.ids) for part in divergence.parts(ids, mask)] == [2, 2, 1]
    assert divergence.kls(ids, mask, lambda _, x: x, alive=lambda: None) == pytest.approx(whole, rel=1e-5)


def test_a_model_of_one_block_has_nothing_to_translate(tmp_path: Path) -> None:
    import transformers

    made: Any = transformers
    folder = save_model("gpt2", tmp_path / "model")
    config = made.GPT2Config.from_pretrained(folder)
    config.n_layer = 1
    made.GPT2LMHeadModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="has 1 block"):
        Divergence(load(SubjectConfig(model=str(folder))))
