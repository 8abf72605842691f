"""Files that are not what they should be: a sentence that says what is wrong, and nothing is run or half-written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.errors import ConfigError, StorageError
from tests.made_saes import D_MODEL, N_LATENTS, apart, inputs, made
from worker.formats import registry, stored_tensors


class _RunsCode:
    """What pickle would run as it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def written(folder: Path, format: str = "saelens", kind: str = "jumprelu") -> Path:
    sae = made("topk") if kind == "topk" else made("jumprelu")
    registry.write(sae, folder, format=format)
    return folder


def with_config(folder: Path, name: str, **changes: Any) -> None:
    config = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def refused(path: Path, says: str, *, format: str | None = None) -> None:
    with pytest.raises(ConfigError, match=says):
        registry.read(path, format=format)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    folder, mark = written(tmp_path / "a", "dictionary_learning"), tmp_path / "it ran"
    torch.save({"W_enc": _RunsCode(mark), "pre_bias": 1, "latent_bias": 1}, folder / "ae.pt")
    refused(folder, "reading that can run code: it is not read")
    torch.save({"W_enc": _RunsCode(mark), "pre_bias": 1, "latent_bias": 1}, tmp_path / "8.pt")
    refused(tmp_path / "8.pt", "reading that can run code: it is not read")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "npz", "safetensors"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("<!doctype html>\n<title>404 – nothing here</title>\n" + "–" * 400, "fetch them again"),
        ("hello world\n", "fetch them again"),
        ("\tkey\tvalue\n", "fetch them again"),
    ],
)
def test_plain_text_is_called_that_and_no_pickle(suffix: str, text: str, hint: str, tmp_path: Path) -> None:
    """Text is what a failed download, or a checkout without Git LFS, leaves in the place of tensors."""
    path = tmp_path / f"params.{suffix}"
    path.write_text(text, encoding="utf-8")
    for read in (stored_tensors.load, stored_tensors.names):
        with pytest.raises(ConfigError, match="is plain text, not tensors: it begins with") as caught:
            read(path)
        assert hint in caught.value.hint
        assert "code" not in str(caught.value)


def test_bytes_that_are_no_tensors_are_called_neither_text_nor_pickle(tmp_path: Path) -> None:
    path = tmp_path / "params.pt"
    for content in (b"", b"\x80\x02cut off", b"PK\x03\x04 cut off", b"\xff\xfe\x00"):
        path.write_bytes(content)
        assert stored_tensors.names(path) == frozenset()
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            stored_tensors.load(path)
        assert "code" not in str(caught.value)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match="reading that can run code: it is not read"):
        stored_tensors.names(path)


@pytest.mark.parametrize("format", ["orch", "saelens", "sparsify", "dictionary_learning", "llama_scope", "mlsae"])
def test_a_file_that_is_missing_is_named_and_not_called_unreadable(format: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.read(tmp_path, format=format)
    (named,) = re.findall(rf"there is no file ({re.escape(str(tmp_path))}/\S+)", caught.value.message)
    assert Path(named).name in {"manifest.json", "cfg.json", "config.json"}
    assert not re.search(r"Errno|cannot be read", str(caught.value))
    assert caught.value.hint


@pytest.mark.parametrize("format", ["orch", "saelens", "sparsify", "dictionary_learning"])
def test_each_file_that_is_taken_out_of_a_folder_is_named_where_it_is_needed(format: str, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", format, "topk")
    for file in whole.iterdir():
        folder = Path(shutil.copytree(whole, tmp_path / f"no {file.name}"))
        (folder / file.name).unlink()
        with suppress(ConfigError):
            registry.read(folder, format=format)
            continue
        with pytest.raises(ConfigError) as caught:
            registry.read(folder, format=format)
        assert not re.search(r"Errno|cannot be read", str(caught.value)), file.name
        assert file.name in str(caught.value) or f"{folder} has no " in str(caught.value), str(caught.value)


def test_an_npz_with_objects_in_it_is_not_read(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    objects = np.array([_RunsCode(mark)], dtype=object)
    np.savez(tmp_path / "params.npz", w_enc=objects, w_dec=objects, b_enc=objects, b_dec=objects)
    refused(tmp_path, "params.npz cannot be read")
    assert not mark.exists()


def test_wrong_shapes(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_tensors(folder, lambda tensors: tensors.update(W_dec=torch.zeros(N_LATENTS, 7)))
    refused(folder, r"W_dec has the shape \(48, 7\).*it is \(48, 16\)")
    with_tensors(folder, lambda tensors: tensors.update(W_dec=torch.zeros(N_LATENTS, D_MODEL), b_enc=torch.zeros(5)))
    refused(folder, r"b_enc has the shape \(5,\)")
    with_tensors(folder, lambda tensors: tensors.update(b_enc=torch.zeros(N_LATENTS), threshold=torch.zeros(())))
    refused(folder, r"threshold has the shape \(\)")


def test_a_matrix_stored_the_other_way_round_is_turned_where_its_shape_says_so(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_tensors(folder, lambda tensors: tensors.update(W_enc=tensors["W_enc"].T, W_dec=tensors["W_dec"].T))
    assert apart(registry.read(folder).sae(inputs()), made("jumprelu")(inputs())) < 1e-6


def test_a_missing_threshold(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_tensors(folder, lambda tensors: tensors.pop("threshold"))
    refused(folder, "sae_weights.safetensors lacks threshold; there is: W_dec, W_enc, b_dec, b_enc")
    zeros = np.zeros(2)
    np.savez(tmp_path / "params.npz", w_enc=zeros, w_dec=zeros, b_enc=zeros, b_dec=zeros)
    refused(tmp_path / "params.npz", "params.npz lacks threshold")


def test_a_threshold_that_was_never_set(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    registry.write(made("batchtopk"), folder, format="dictionary_learning")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    refused(folder, "the threshold in .* was never set")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_tensors(folder, lambda tensors: tensors["W_dec"][3, 4].fill_(value))
    refused(folder, "W_dec has values that are not finite")


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_config(folder, "cfg.json", architecture="matching_pursuit")
    refused(folder, "the architecture 'matching_pursuit' of .* is not known")
    folder = written(tmp_path / "b", "sparsify", "topk")
    with_config(folder, "cfg.json", activation="groupmax")
    refused(folder, "the activation 'groupmax' of .* is not known")
    folder = written(tmp_path / "c", "dictionary_learning")
    with_config(folder, "config.json", trainer={"dict_class": "CrossCoder"})
    refused(folder, "the dict_class 'CrossCoder' of .* is not known")


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder or file")
    refused(tmp_path, r"is in no format of an SAE that is known \(there is: nothing\)")
    for format, kind, weights in (
        ("saelens", "topk", "sae_weights.safetensors"), ("sparsify", "topk", "sae.safetensors"),
        ("dictionary_learning", "topk", "ae.pt"), ("orch", "topk", "sae.safetensors"),
    ):  # fmt: skip
        folder = written(tmp_path / format, format, kind)
        (folder / weights).unlink()
        refused(folder, weights, format=format)


@pytest.mark.parametrize("format", ["saelens", "sparsify", "orch"])
def test_safetensors_cut_off(format: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "a", format, "topk")
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "changed since it was written" if format == "orch" else "cannot be read", format=format)


def test_a_pickle_cut_off(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "dictionary_learning")
    (folder / "ae.pt").write_bytes((folder / "ae.pt").read_bytes()[:-100])
    refused(folder, "ae.pt cannot be read", format="dictionary_learning")


@pytest.mark.parametrize(
    ("format", "name", "key"),
    [
        ("saelens", "cfg.json", "d_in"), ("saelens", "cfg.json", "architecture"), ("saelens", "cfg.json", "k"),
        ("sparsify", "cfg.json", "k"), ("sparsify", "cfg.json", "d_in"),
        ("dictionary_learning", "config.json", "trainer"), ("mlsae", "config.json", "n_inputs"),
    ],
)  # fmt: skip
def test_a_config_without_a_needed_key(format: str, name: str, key: str, tmp_path: Path) -> None:
    sae = made("topk")
    sae = sae.changed({"b_enc": torch.zeros(N_LATENTS)}) if format == "mlsae" else sae
    registry.write(sae, tmp_path / "a", format=format)
    with_config(tmp_path / "a", name, **{key: None})
    refused(tmp_path / "a", f"lacks {key}", format=format)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00\xff"])
def test_a_config_that_is_no_json(text: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    (folder / "cfg.json").write_text(text)
    refused(folder, "cfg.json", format="saelens")


def test_saelens_without_the_number_its_input_is_multiplied_by(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with_config(folder, "cfg.json", normalize_activations="expected_average_only_in")
    refused(folder, "multiplies its input by a number .* that is in none of its files")
    with_config(folder, "cfg.json", normalize_activations="covariance_whitening")
    refused(folder, "normalize_activations 'covariance_whitening' is not known")


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        registry.write(made("topk"), tmp_path / "a", format="saelens")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        registry.write(made("topk"), tmp_path / "file" / "a", format="saelens")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_formats_that_are_read_alone_and_formats_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Gemma Scope is read alone"):
        registry.write(made("topk"), tmp_path / "a", format="gemma_scope")
    with pytest.raises(ConfigError, match="there is no format 'onnx'"):
        registry.write(made("topk"), tmp_path / "a", format="onnx")
    assert registry.files_needed("sparsify") == ["cfg.json", "sae.safetensors", "config.json"]


@pytest.mark.parametrize("value", [[], {}, "x", -1, 0, 1e308, True, [1, 2]], ids=repr)
@pytest.mark.parametrize("format", [name for name in registry.WRITTEN if name != "openai"])
def test_a_config_with_anything_in_the_place_of_a_value(format: str, value: Any, tmp_path: Path) -> None:
    """It is read where the value does not matter, and else refused: no other error."""
    sae = made("topk").changed({"b_enc": torch.zeros(N_LATENTS)})
    registry.write(sae, tmp_path / "a", format=format)
    for path in (tmp_path / "a").glob("c*.json"):
        whole = json.loads(path.read_text())
        parts = [(whole, key) for key in whole]
        parts += [(part, key) for part in whole.values() if isinstance(part, dict) for key in part]
        for part, key in parts:
            kept, part[key] = part[key], value
            path.write_text(json.dumps(whole))
            (tmp_path / "a" / "manifest.json").write_text(json.dumps({"sha256": {}}))
            with suppress(ConfigError):
                registry.detect(tmp_path / "a")
            with suppress(ConfigError):
                assert registry.read(tmp_path / "a", format=format).facts.d_model == D_MODEL
            part[key] = kept
