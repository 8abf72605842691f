"""Lens files of the tuned-lens library: which translator is of which layer, and what is refused in a sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import SubjectConfig
from orchestrator.errors import ConfigError
from tests.unit.worker.subject.tiny_models import LAYERS, WIDTH, save_model
from worker.lens.published import read_published
from worker.subject.model import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt_neox", tmp_path_factory.mktemp("models") / "tiny-neox")


def translators(prefix: str = "", *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for number in range(LAYERS):
        tensors[f"{prefix}{number}.weight"] = (0.1 * torch.randn(WIDTH, WIDTH, generator=draw)).to(dtype)
        tensors[f"{prefix}{number}.bias"] = torch.randn(WIDTH, generator=draw).to(dtype)
    return tensors


def written(folder: Path, tensors: dict[str, Any], **changes: Any) -> Path:
    """Write what `TunedLens.save` writes."""
    folder.mkdir()
    config = {
        "base_model_name_or_path": "Owner/tiny-neox", "d_model": WIDTH, "num_hidden_layers": LAYERS, "bias": True,
        "base_model_revision": None, "unembed_hash": "0" * 64, "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    torch.save(tensors, folder / "params.pt")
    return folder


def of(model: Path, **more: Any) -> SubjectConfig:
    return SubjectConfig(model=str(model), **more)


@pytest.mark.parametrize("prefix", ["", "layer_translators."])
def test_the_output_of_a_block_takes_the_translator_of_the_next_ones_input(
    model: Path, tmp_path: Path, prefix: str
) -> None:
    stored = translators(prefix)
    lens = read_published(written(tmp_path / "lens", stored | {"unembed.weight": torch.zeros(3)}), of(model))
    for layer in range(LAYERS - 1):
        assert torch.equal(lens.weights[layer], stored[f"{prefix}{layer + 1}.weight"])
        assert torch.equal(lens.biases[layer], stored[f"{prefix}{layer + 1}.bias"])
    assert not lens.weights[-1].any()
    assert not lens.biases[-1].any()


def test_it_maps_hidden_states_as_the_library_does(model: Path, tmp_path: Path) -> None:
    """There, hidden_states[i] with the embeddings at 0 takes h + translator i (h); hidden_states[l + 1] is our l."""
    stored = translators()
    lens = read_published(written(tmp_path / "lens", stored), of(model))
    subject = load(of(model, layer=0))
    ids = torch.arange(12).view(1, 12)
    hidden = subject.model(ids, output_hidden_states=True).hidden_states
    for layer in range(LAYERS - 1):
        h = hidden[layer + 1]
        theirs = torch.nn.functional.linear(h, stored[f"{layer + 1}.weight"], stored[f"{layer + 1}.bias"])
        torch.testing.assert_close(lens.into(layer, h), h + theirs)


def test_a_lens_without_biases_and_of_half_precision_is_kept_in_float32(model: Path, tmp_path: Path) -> None:
    tensors = {name: value for name, value in translators(dtype=torch.float16).items() if "bias" not in name}
    lens = read_published(written(tmp_path / "lens", tensors, bias=False), of(model))
    assert (lens.weights.dtype, lens.facts.dtype) == (torch.float32, "float16")
    assert not lens.biases.any()
    assert lens.facts.fingerprint == load(of(model, layer=0)).fingerprint


def _with(name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    tensors = translators()
    return tensors | {name: value(tensors[name])}


SINGULAR = {**translators(), "2.weight": -torch.eye(WIDTH)}
ENDLESS = _with("1.bias", lambda bias: bias + float("inf"))
NARROW = _with("1.weight", lambda weight: weight[:, 1:])
SHORT = {name: value for name, value in translators().items() if not name.startswith("2.")}
WITHOUT_FIRST = {name: value for name, value in translators().items() if not name.startswith("0.")}


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (SINGULAR, {}, "the translator of layer 1 is singular"),
        (ENDLESS, {}, "the translator of layer 0 holds numbers that are not finite"),
        (NARROW, {}, r"1\.weight in .* is \(16, 15\) of float32, and should be floats of \(16, 16\)"),
        (SHORT, {}, "the lens has 2 translators, for 3 blocks of width 16, and .* has 3 blocks of width 16"),
        (WITHOUT_FIRST, {}, r"lacks the translator 0\.weight; there is: 1\.bias"),
        ({}, {}, r"lacks the translator 0\.weight; there is: nothing"),
        (translators(), {"num_hidden_layers": 4}, "for 4 blocks of width 16, and .* has 3 blocks"),
        (translators(), {"d_model": 32}, "for 3 blocks of width 32, and .* has 3 blocks of width 16"),
        (translators(), {"base_model_name_or_path": "Owner/other"}, "the lens is of Owner/other, and the subject is"),
        (translators(), {"base_model_revision": "step3"}, "the lens is of revision step3 of its model"),
        (translators(), {"lens_type": "mlp"}, "only affine lenses are read"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: Path, tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_published(written(tmp_path / "lens", tensors, **config), of(model))


def test_a_revision_that_is_named_on_both_sides_is_taken(model: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "lens", translators(), base_model_revision="step3")
    assert read_published(folder, of(model, revision="step3")).facts.revision == "step3"
    assert read_published(written(tmp_path / "main", translators()), of(model, revision="main")).facts.n_layers == 3


class _RunsCode:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_would_run_code_is_not_read(model: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "lens", {"0.weight": _RunsCode(tmp_path / "it ran")})
    with pytest.raises(ConfigError, match="reading that can run code: it is not read"):
        read_published(folder, of(model))
    assert not (tmp_path / "it ran").exists()


def test_a_folder_without_the_files_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^there is no file .*config\.json\n"):
        read_published(tmp_path, of(model))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is no file .*params\.pt"):
        read_published(tmp_path, of(model))
