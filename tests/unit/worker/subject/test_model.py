"""Loading: what is refused and how it is said; reading in other precisions; counts and fingerprints."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from orchestrator.config.job import SHIPPED_SUBJECT, SubjectConfig
from orchestrator.errors import SubjectError
from tests.unit.worker.subject.tiny_models import CONTEXT, INNER, LAYERS, VOCABULARY, WIDTH, save_model
from worker.subject import hub
from worker.subject.model import capture, load, width
from worker.subject.model_files import locate

IDS = torch.arange(24).reshape(2, 12) % VOCABULARY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


def test_what_a_subject_knows(folder: Path) -> None:
    subject = load(SubjectConfig(model=str(folder), layer=1))
    assert (subject.d_model, subject.n_layers, subject.max_context, subject.vocabulary) == (
        WIDTH, LAYERS, CONTEXT, VOCABULARY,
    )  # fmt: skip
    assert len(subject.tokenizer) == VOCABULARY
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())
    attention, mlp, norms = 2 * WIDTH * 16 + 2 * WIDTH * 8, 3 * WIDTH * INNER, 2 * WIDTH
    assert subject.parameters_run == 2 * (attention + mlp + norms)
    assert len(subject.fingerprint) == 64
    assert subject.fingerprint == load(SubjectConfig(model=str(folder), layer=0)).fingerprint


def test_parameters_behind_the_hook_point_do_not_count(folder: Path) -> None:
    whole, branch = (load(SubjectConfig(model=str(folder), layer=0, site=s)) for s in ("resid_post", "attn_delta"))
    assert whole.parameters_run - branch.parameters_run == 3 * WIDTH * INNER + WIDTH


@pytest.mark.parametrize("place", [{}, {"layer": 0, "site": "mlp_post"}, {"hook": "model.layers.0.mlp.up_proj"}])
def test_width_needs_no_weights(folder: Path, tmp_path: Path, place: dict[str, object]) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    loaded = load(SubjectConfig.model_validate({"model": str(folder)} | place))
    assert width(SubjectConfig.model_validate({"model": str(tmp_path)} | place)) == loaded.d_model


def test_activations_can_be_trained_on(folder: Path) -> None:
    found = capture(load(SubjectConfig(model=str(folder))), IDS)
    weight = torch.ones(WIDTH, requires_grad=True)
    torch.autograd.backward((found * weight).sum())
    assert weight.grad is not None
    assert not found.is_inference()


@pytest.mark.parametrize("kind", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_gelu_made_of_several_operations_is_done_by_one(kind: str, tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"activation_function": kind}))
    subject = load(SubjectConfig(model=str(folder), layer=LAYERS - 1))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = plain.transformer(IDS, output_hidden_states=True).hidden_states
    found = capture(load(SubjectConfig(model=str(folder), layer=LAYERS - 2)), IDS)
    torch.testing.assert_close(found, expected[LAYERS - 1], rtol=1e-5, atol=1e-5)
    assert isinstance(plain.transformer.h[0].mlp.act, type(ACT2FN[kind]))
    assert [type(block.mlp.act) for block in subject.model.transformer.h] == [torch.nn.GELU] * LAYERS


def test_another_activation_function_stays(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"activation_function": "gelu"}))
    blocks = load(SubjectConfig(model=str(folder), layer=0)).model.transformer.h
    assert {type(block.mlp.act) for block in blocks} == {type(ACT2FN["gelu"])}


def test_low_precision_is_read_as_float32(folder: Path) -> None:
    exact = capture(load(SubjectConfig(model=str(folder))), IDS)
    for site in ("resid_post", "resid_mid", "mlp_post"):
        rounded = load(SubjectConfig.model_validate({"model": str(folder), "dtype": "bfloat16", "site": site}))
        found = capture(rounded, IDS)
        assert found.dtype == torch.float32
        if site == "resid_post":
            assert (found - exact).norm() < 0.05 * exact.norm()


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="there is no model folder"):
        locate(SubjectConfig(model=str(tmp_path / "nowhere")))
    with pytest.raises(SubjectError, match=r"holds no config.json"):
        locate(SubjectConfig(model=str(tmp_path)))


def test_a_model_id_without_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    with pytest.raises(SubjectError, match=r"(?s)neither a folder nor cached here.*local folder.*HF_HUB_OFFLINE"):
        locate(SubjectConfig(model="nobody/nothing"))
    assert time.monotonic() - begun < 3
    with pytest.raises(SubjectError, match="Repo id"):
        locate(SubjectConfig(model="no such name"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("ALL_PROXY", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub.is_reachable()


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SubjectError, match=r"(?s)only pytorch_model.bin.*safetensors"):
        load(SubjectConfig(model=str(tmp_path)))


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS + 1}))
    with pytest.raises(SubjectError, match=r"lack \d+ tensors, model.layers.3"):
        load(SubjectConfig(model=str(copy)))
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SubjectError, match="cannot be loaded"):
        load(SubjectConfig(model=str(copy)))


def test_a_model_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(SubjectError, match=r"(?s)tokenizer.*tokenizer.json"):
        load(SubjectConfig(model=str(tmp_path)))


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    mark = tmp_path / "ran"
    (copy / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((copy / "config.json").read_text())
    theirs = {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (copy / "config.json").write_text(json.dumps(config | theirs))
    with pytest.raises(SubjectError, match=r"(?s)cannot be loaded.*trust_remote_code"):
        load(SubjectConfig(model=str(copy)))
    assert not mark.exists()


def test_the_shipped_model_is_read() -> None:
    subject = load(SubjectConfig(model=SHIPPED_SUBJECT))
    assert str(subject.hook) == "resid_post of transformer.h.4"
    assert capture(subject, torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, width(SubjectConfig()))
