"""The training of a lens: it begins as the logit lens, falls below it, and goes on from a checkpoint bit for bit."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.job import SubjectConfig
from orchestrator.config.lens.facts import LensFacts
from orchestrator.config.lens.reading import parse_lens
from orchestrator.errors import CheckpointError
from tests.unit.worker.subject.tiny_models import LAYERS, VOCABULARY, WIDTH, save_model
from worker.lens_training import checkpoint
from worker.lens_training.divergence import Divergence
from worker.lens_training.state import LensState
from worker.subject.model import load

CONFIG = parse_lens({"optimizer": {"lr": 0.01}})
FACTS = LensFacts(model="tiny", fingerprint="f" * 64, n_layers=LAYERS, d_model=WIDTH)
SOURCE = {"subject": {"sha256": "f"}, "tokens": {"id": "t"}}


@pytest.fixture(scope="module")
def divergence(tmp_path_factory: pytest.TempPathFactory) -> Divergence:
    folder = save_model("llama", tmp_path_factory.mktemp("model") / "llama")
    return Divergence(load(SubjectConfig(model=str(folder))))


def fresh() -> LensState:
    return LensState(CONFIG, n_layers=LAYERS, d_model=WIDTH)


def steps(state: LensState, divergence: Divergence, first: int, last: int) -> LensState:
    for number in range(first, last):
        ids = torch.randint(VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(number))
        state.step(divergence, ids, ids > 3)
    return state


def test_it_begins_as_the_logit_lens_and_falls_below_it_at_every_layer(divergence: Divergence) -> None:
    ids = torch.randint(VOCABULARY, (16, 8), generator=torch.Generator().manual_seed(99))
    state, measured = fresh(), torch.ones_like(ids, dtype=torch.bool)

    def kls(state: LensState) -> list[float]:
        return divergence.kls(ids, measured, state.translate, alive=lambda: None)

    before = divergence.kls(ids, measured, lambda _, x: x, alive=lambda: None)
    assert kls(state) == before
    after = kls(steps(state, divergence, 0, 40))
    assert all(now < then for now, then in zip(after[:-1], before[:-1], strict=True))
    assert after[-1] == before[-1] == 0
    lens = state.lens(FACTS)
    x = torch.randn(5, WIDTH)
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(lens.into(layer, x), state.translate(layer, x))
    assert torch.equal(lens.into(LAYERS - 1, x), x)


def test_the_first_step_is_adams(divergence: Divergence) -> None:
    state = steps(fresh(), divergence, 0, 1)
    moved = torch.stack([one.detach() for one in state.weights]).abs()
    assert float(moved.max()) == pytest.approx(0.01, rel=1e-3), "every entry moves by the rate, whatever its gradient"
    assert state.tokens_seen == 32, "tokens of text, special ones among them"


def test_saved_and_taken_up_it_goes_on_bit_for_bit(divergence: Divergence, tmp_path: Path) -> None:
    undisturbed = steps(fresh(), divergence, 0, 6)
    state = steps(fresh(), divergence, 0, 3)
    state.logit_lens_kls = [1.0, 0.5, 0.0]
    state.point([0.5, 0.25, 0.0])
    ref = checkpoint.save(tmp_path, state, CONFIG, source=SOURCE)
    again = checkpoint.load(ref.uri, CONFIG)
    assert (again.curve, again.logit_lens_kls, again.tokens_seen) == (state.curve, [1.0, 0.5, 0.0], 96)
    assert checkpoint.source_of(ref.uri) == SOURCE
    steps(again, divergence, 3, 6)
    for name, one in undisturbed.tensors().items():
        assert torch.equal(again.tensors()[name], one), name
    assert again.n_steps == undisturbed.n_steps


def test_a_checkpoint_that_is_not_this_jobs_or_damaged_is_refused(divergence: Divergence, tmp_path: Path) -> None:
    ref = checkpoint.save(tmp_path, steps(fresh(), divergence, 0, 1), CONFIG, source=SOURCE)
    with pytest.raises(CheckpointError, match="another config"):
        checkpoint.load(ref.uri, parse_lens({"optimizer": {"lr": 0.02}}))
    file = Path(ref.uri, "training.json")
    file.write_text(file.read_text().replace("n_steps", "n_stops"))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        checkpoint.load(ref.uri, CONFIG)


def test_a_loss_that_is_not_finite_makes_a_point_that_says_so(divergence: Divergence) -> None:
    state = steps(fresh(), divergence, 0, 1)
    state.loss_sum = float("nan")
    point = state.point([float("nan"), 0.25, 0.0])
    assert point.kl != point.kl
    assert point.kls == [None, 0.25, 0.0], "JSON of every database holds it"
