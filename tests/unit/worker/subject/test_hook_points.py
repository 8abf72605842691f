"""Every site of every family is what its name says, and a hook point can be replaced."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import SubjectConfig
from orchestrator.config.sites import SITES, Site, default_layer
from orchestrator.errors import ConfigError, SubjectError
from tests.unit.worker.subject.tiny_models import FAMILIES, INNER, VOCABULARY, WIDTH, save_model
from worker.subject.hook_points import block_names, check_site, find_hook, hooked
from worker.subject.hook_sites import SITE_RULES, HookPoint
from worker.subject.model import Subject, capture, load, run_patched

IDS = torch.arange(24).reshape(2, 12) % VOCABULARY
LAYER = 1


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


def at(folder: Path, site: Site, layer: int = LAYER) -> Subject:
    return load(SubjectConfig(model=str(folder), layer=layer, site=site))


def read(folder: Path, site: Site) -> Tensor:
    return capture(at(folder, site), IDS)


def test_resid_post_is_the_next_hidden_state(folder: Path) -> None:
    subject = at(folder, "resid_post")
    states = subject.model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.equal(capture(subject, IDS), states[LAYER + 1])


def test_the_stream_adds_up(folder: Path) -> None:
    start = capture(at(folder, "resid_post", LAYER - 1), IDS)
    middle, end = read(folder, "resid_mid"), read(folder, "resid_post")
    torch.testing.assert_close(middle, start + read(folder, "attn_delta"), rtol=0, atol=1e-6)
    torch.testing.assert_close(end, middle + read(folder, "mlp_delta"), rtol=0, atol=2e-6)
    assert not torch.allclose(middle, start, atol=1e-2)
    assert not torch.allclose(middle, end, atol=1e-2)


def test_mlp_post_is_what_the_last_linear_reads(folder: Path) -> None:
    subject = at(folder, "mlp_post")
    found = capture(subject, IDS)
    assert subject.d_model == found.shape[-1] == INNER
    linear = subject.model.get_submodule(subject.hook.name)
    mlp_output: list[Tensor] = []
    owner = subject.hook.name.rpartition(".")[0]
    inner = HookPoint(subject.hook.name if owner == subject.hook.block else owner)
    with torch.no_grad(), hooked(subject.model, inner, mlp_output.append):
        subject.model(input_ids=IDS, use_cache=False)
    torch.testing.assert_close(linear(found).reshape(2, 12, WIDTH), mlp_output[0].reshape(2, 12, WIDTH))


@pytest.mark.parametrize("site", SITES)
def test_a_patch_takes_effect_once(folder: Path, site: Site) -> None:
    subject = at(folder, site)
    clean = subject.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(run_patched([subject], IDS, [lambda x: x]), clean)
    torch.testing.assert_close(run_patched([subject], IDS, [torch.clone]), clean, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run_patched([subject], IDS, [torch.zeros_like]), clean, atol=1e-2)
    seen: list[Tensor] = []
    marker = torch.randn(2, 12, subject.d_model)
    with hooked(subject.model, subject.hook, lambda _: marker), hooked(subject.model, subject.hook, seen.append):
        subject.model(input_ids=IDS, use_cache=False)
    torch.testing.assert_close(seen[0].reshape(marker.shape), marker, rtol=1e-5, atol=1e-5)


def test_two_hook_points_are_patched_in_one_forward(folder: Path) -> None:
    first = at(folder, "resid_post", 0)
    second = first.at(first.config.model_copy(update={"layer": LAYER, "site": "mlp_delta"}))
    model, both = first.model, [first, second]
    assert torch.equal(run_patched(both, IDS, [lambda x: x] * 2), model(input_ids=IDS, use_cache=False).logits)
    markers = [torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def always(marker: Tensor, _found: Tensor) -> Tensor:
        return marker

    found = run_patched(both, IDS, [partial(always, marker) for marker in markers])

    def put(marker: Tensor, _module: Any, _args: Any, output: Any) -> Any:
        old = output[0] if isinstance(output, tuple) else output
        new = marker.reshape(old.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handles = [
        model.get_submodule(subject.hook.name).register_forward_hook(partial(put, marker))
        for subject, marker in zip(both, markers, strict=True)
    ]
    with torch.no_grad():
        by_hand = model(input_ids=IDS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(found, by_hand)
    one_alone = run_patched([first], IDS, [lambda _: markers[0]])
    assert not torch.allclose(found, one_alone, atol=1e-2), "the second patch takes effect, too"


@pytest.mark.parametrize(("site", "finished"), [("resid_post", LAYER + 1), ("attn_delta", LAYER)])
def test_reading_stops_the_forward_there(folder: Path, site: Site, finished: int) -> None:
    subject = at(folder, site)
    names = block_names(subject.model)
    done: list[str] = []
    for name in names:
        subject.model.get_submodule(name).register_forward_hook(lambda *_, name=name: done.append(name))
    subject.model.get_output_embeddings().register_forward_hook(lambda *_: done.append("head"))
    capture(subject, IDS)
    assert done == names[:finished]


@pytest.mark.parametrize(("depth", "layer"), [(12, 8), (6, 4), (5, 3), (2, 0), (1, 0), (3, 1), (24, 17)])
def test_default_layer_is_at_three_quarters(depth: int, layer: int) -> None:
    assert default_layer(depth) == layer


def test_wrong_places_name_the_right_ones(tmp_path: Path) -> None:
    model = str(save_model("llama", tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)layer = 3, and .* has 3 blocks.*from 0 to 2"):
        load(SubjectConfig(model=model, layer=3))
    with pytest.raises(ConfigError, match=r"(?s)no module 'model.layer.1'.*model.layers.1"):
        load(SubjectConfig(model=model, hook="model.layer.1"))
    by_name = load(SubjectConfig(model=model, hook="model.layers.1.mlp.act_fn"))
    assert by_name.d_model == INNER
    # A module that runs, but gives several vectors per token or is never reached.
    with pytest.raises(SubjectError, match="never runs model"):
        load(SubjectConfig(model=model, hook="model.layers"))


def test_a_block_that_adds_up_otherwise_is_refused(tmp_path: Path) -> None:
    subject = load(SubjectConfig(model=str(save_model("gpt2", tmp_path)), layer=1, site="resid_mid"))
    subject.model.transformer.h[1].mlp.register_forward_hook(lambda _m, _a, output: output + 1)
    check_site(subject.model, subject.hook, IDS)
    subject.model.transformer.h[1].register_forward_hook(lambda _m, _a, output: output * 2)
    with pytest.raises(SubjectError, match=r"(?s)does not add up as resid_mid.*resid_post"):
        check_site(subject.model, subject.hook, IDS)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe"])
@pytest.mark.parametrize("site", SITES)
def test_a_mixture_of_experts_is_read_or_refused_in_words(family: str, site: Site) -> None:
    transformers: Any = import_module("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "vocab_size": 64, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    subject = SubjectConfig(model="here", layer=1, site=site)
    if site == "mlp_post":
        with pytest.raises((ConfigError, SubjectError), match=r"(?s)no linear map|does not add up.*resid_post"):
            check_site(model, find_hook(model, subject), IDS)
    else:
        check_site(model, find_hook(model, subject), IDS)


def test_a_model_without_blocks_needs_a_name(tmp_path: Path) -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"(?s)no list of transformer blocks.*subject.hook"):
        find_hook(model, SubjectConfig(model=str(tmp_path)))
    assert find_hook(model, SubjectConfig(hook="0")) == HookPoint("0")


def test_every_site_is_known_with_a_model_and_without() -> None:
    assert set(SITES) == set(SITE_RULES) == set(get_args(Site))


@pytest.mark.parametrize("site", SITES)
def test_the_width_of_a_site_is_the_models_where_the_config_says_so(folder: Path, site: Site) -> None:
    subject = at(folder, site)
    assert (subject.d_model == WIDTH) == subject.config.has_model_width
