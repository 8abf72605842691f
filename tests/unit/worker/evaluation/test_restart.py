"""A forward pass restarted at the hooked block is the whole patched one, in every family and at every site."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.job import SubjectConfig
from orchestrator.config.sites import SITES, Site
from tests.unit.worker.subject.tiny_models import FAMILIES, VOCABULARY, save_model
from worker.evaluation.restart import Restart
from worker.subject.hook_points import block_names
from worker.subject.model import Subject, load, run_patched

IDS = torch.arange(36).reshape(3, 12) % VOCABULARY


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load(SubjectConfig(model=str(save_model(request.param, tmp_path_factory.mktemp(request.param))), layer=0))


def at(subject: Subject, **place: Any) -> Subject:
    return subject.at(subject.config.model_copy(update={"layer": None} | place))


def shrunk(x: Tensor) -> Tensor:
    return 0.7 * x + 0.1


def runs(model: Any) -> tuple[list[str], list[Any]]:
    """Return a list to which the names of blocks that run are added, and what removes it."""
    names: list[str] = []
    handles = [
        child.register_forward_hook(lambda *_, name=name: names.append(name))
        for name in block_names(model)
        for child in [next(iter(model.get_submodule(name).children()))]
    ]
    return names, handles


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_restarted_pass_is_the_whole_one(subject: Subject, site: Site, where: str) -> None:
    layer = {"first": 0, "middle": 1, "last": subject.n_layers - 1}[where]
    view = at(subject, layer=layer, site=site)
    restart = Restart.of(view)
    below = layer + 1 if site == "resid_post" else layer
    assert [block.name for block in restart.skipped] == block_names(view.model)[:below]
    stored = restart.capture(IDS)
    for replacement in (shrunk, torch.zeros_like):
        whole = run_patched([view], IDS, [replacement])
        torch.testing.assert_close(restart(IDS, stored, replacement), whole, rtol=0, atol=1e-5)
    clean = view.model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(restart(IDS, stored, lambda x: x), clean, rtol=0, atol=1e-5)


def test_facts_are_enough_to_find_it_again(subject: Subject) -> None:
    for place in ({"layer": 1}, {"layer": 1, "site": "resid_mid"}, {"layer": 0, "site": "resid_mid"}):
        view = at(subject, **place)
        found = Restart.of(view)
        assert Restart.known(view, found.facts) == found
        assert found.ignores_ids == (place == {"layer": 1}), "of no family here blocks look at the tokens"


def test_a_block_that_looks_at_the_tokens_is_noticed(tmp_path: Path) -> None:
    view = load(SubjectConfig(model=str(save_model("llama", tmp_path)), layer=1))
    kept: list[Tensor] = []
    view.model.get_input_embeddings().register_forward_hook(lambda _module, _args, output: kept.append(output))
    upper = view.model.get_submodule(block_names(view.model)[2])
    upper.mlp.register_forward_hook(lambda _module, _args, output: output + kept[-1])
    restart = Restart.of(view)
    assert restart.is_at_hook
    assert not restart.ignores_ids


def test_the_blocks_below_do_not_run_and_the_model_stays_as_it_was(subject: Subject) -> None:
    restart = Restart.of(at(subject, layer=1))
    stored = restart.capture(IDS)
    model = subject.model
    before = model(input_ids=IDS, use_cache=False).logits
    ran, handles = runs(model)
    restart(IDS, stored, shrunk)
    for handle in handles:
        handle.remove()
    assert ran == block_names(model)[2:]

    def fails(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        restart(IDS, stored, fails)
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, before)
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in model.modules())


def test_rows_may_be_any_number_and_any_selection(subject: Subject) -> None:
    restart = Restart.of(at(subject, layer=1, site="resid_mid"))
    stored = restart.capture(IDS)
    assert stored is not None
    rows = torch.tensor([2, 0, 0, 2, 1])
    found = restart(IDS[rows], stored[rows], shrunk)
    torch.testing.assert_close(found, restart(IDS, stored, shrunk)[rows], rtol=0, atol=1e-5)
    assert len(restart(IDS[:1], stored[:1], shrunk)) == 1


def test_a_module_in_a_block_restarts_before_it_and_one_in_none_runs_whole(subject: Subject) -> None:
    model, blocks = subject.model, block_names(subject.model)
    inner = next(
        n for n, m in model.get_submodule(blocks[1]).named_modules() if isinstance(m, nn.LayerNorm) or "norm" in n
    )
    embedding = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    for hook, n_skipped in ((f"{blocks[1]}.{inner}", 1), (blocks[1], 2), (embedding, 0)):
        view = at(subject, hook=hook)
        restart = Restart.of(view)
        assert len(restart.skipped) == n_skipped
        whole = run_patched([view], IDS, [shrunk])
        torch.testing.assert_close(restart(IDS, restart.capture(IDS), shrunk), whole, rtol=0, atol=1e-5)


def test_low_precision_restarts_too(tmp_path: Path) -> None:
    view = load(SubjectConfig(model=str(save_model("llama", tmp_path)), layer=1, dtype="bfloat16"))
    restart = Restart.of(view)
    stored = restart.capture(IDS)
    assert stored is not None
    assert stored.dtype == torch.bfloat16
    assert torch.equal(restart(IDS, stored, shrunk), run_patched([view], IDS, [shrunk]))


def test_blocks_that_hand_on_more_than_the_stream_run_whole(tmp_path: Path) -> None:
    view = load(SubjectConfig(model=str(save_model("llama", tmp_path)), layer=1))
    lower, upper = (view.model.get_submodule(name) for name in block_names(view.model)[1:3])
    kept: list[Tensor] = []
    lower.mlp.register_forward_hook(lambda _module, _args, output: kept.append(output))
    upper.mlp.register_forward_hook(lambda _module, _args, output: output + kept[-1].mean(0))
    restart = Restart.of(view)
    assert restart.start is None
    assert torch.equal(restart(IDS, restart.capture(IDS), shrunk), run_patched([view], IDS, [shrunk]))
