"""A tuned lens: what it maps, that the map is undone, what it refuses, and that its file is whole or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.config.lens.facts import LENSES, LensFacts
from orchestrator.errors import CheckpointError, ConfigError
from worker.lens.tuned_lens import TunedLens

FACTS = LensFacts(model="tiny", fingerprint="f" * 64, n_layers=3, d_model=8)


def _lens(scale: float = 0.1) -> TunedLens:
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 8, 8, generator=draw) * scale
    biases = torch.randn(3, 8, generator=draw)
    weights[-1], biases[-1] = 0, 0
    return TunedLens(weights=weights, biases=biases, facts=FACTS)


def _vectors() -> Tensor:
    return torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(1))


def test_each_layer_has_its_own_affine_map_and_the_last_none() -> None:
    lens, x = _lens(), _vectors()
    for layer in (0, 1):
        by_hand = torch.einsum("ij,btj->bti", torch.eye(8) + lens.weights[layer], x) + lens.biases[layer]
        torch.testing.assert_close(lens.into(layer, x), by_hand)
    assert lens.into(2, x) is x
    assert lens.back(2, x) is x
    assert lens.condition(2) == 1.0


def test_the_way_back_is_solved() -> None:
    lens, x = _lens(), _vectors()
    for layer in (0, 1):
        torch.testing.assert_close(lens.back(layer, lens.into(layer, x)), x, rtol=1e-5, atol=1e-5)
        assert lens.condition(layer) == pytest.approx(float(torch.linalg.cond(torch.eye(8) + lens.weights[layer])))


def test_an_ill_conditioned_map_is_undone_as_well_as_float32_can() -> None:
    """What is lost on the way is the rounding of one float32, times the condition number."""
    lens = _lens()
    weights = lens.weights.clone()
    weights[0] = torch.diag(torch.logspace(0, -3, 8)) - torch.eye(8)
    lens = replace(lens, weights=weights)
    assert lens.condition(0) == pytest.approx(1000, rel=1e-4)
    error = (lens.back(0, lens.into(0, _vectors())) - _vectors()).abs().max()
    assert error < 1000 * 8 * torch.finfo(torch.float32).eps


def test_a_singular_translator_is_refused_by_layer() -> None:
    weights = _lens().weights.clone()
    weights[1] = torch.diag(torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 0]))  # I + A has a row of zeros
    with pytest.raises(ConfigError, match="the translator of layer 1 is singular"):
        replace(_lens(), weights=weights).check_invertible()
    assert _lens().check_invertible()[2] == 1.0


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ((0, 1, 2), float("nan"), "layer 0 holds numbers that are not finite"),
        ((1, 1, 2), float("inf"), "layer 1 holds numbers that are not finite"),
        ((2, 0, 0), 0.5, "the last layer is not the identity"),
    ],
)
def test_what_no_lens_holds_is_refused(where: tuple[int, int, int], value: float, said: str) -> None:
    weights = _lens().weights.clone()
    weights[where] = value
    with pytest.raises(ConfigError, match=said):
        replace(_lens(), weights=weights)


def test_a_lens_of_another_width_or_depth_is_refused() -> None:
    for facts in (FACTS.model_copy(update={"n_layers": 4}), FACTS.model_copy(update={"d_model": 16})):
        with pytest.raises(ConfigError, match="blocks of width"):
            replace(_lens(), facts=facts)


def test_a_folder_is_named_by_its_content_and_read_back(tmp_path: Path) -> None:
    lens = _lens()
    stored = lens.store(tmp_path)
    assert Path(stored.uri) == tmp_path / LENSES / stored.sha256
    assert lens.store(tmp_path) == stored
    assert _lens(0.2).store(tmp_path).sha256 != stored.sha256
    assert len([*(tmp_path / LENSES).iterdir()]) == 2, "nothing half-written stays"
    again = TunedLens.read(Path(stored.uri), sha256=stored.sha256)
    assert again.facts == lens.facts
    assert torch.equal(again.weights, lens.weights)
    assert torch.equal(again.biases, lens.biases)


def test_a_damaged_folder_is_refused_and_mended_by_storing_the_lens_again(tmp_path: Path) -> None:
    stored = _lens().store(tmp_path)
    (Path(stored.uri) / "lens.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lens\.safetensors changed"):
        TunedLens.read(Path(stored.uri))
    assert _lens().store(tmp_path) == stored
    with pytest.raises(CheckpointError, match="is asked for"):
        TunedLens.read(Path(stored.uri), sha256="0" * 64)
