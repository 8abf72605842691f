"""Tuned lenses from Python: asked for as by `orch lens train`, listed, and loaded as what a worker trained."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import orch
from orch.study import Study
from orchestrator.errors import ConfigError, NotFound, StateError
from orchestrator.lenses import LensEntry
from tests.small_world import CONTEXT, WIDTH, World, make_subject, small_world


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home") as made:
        yield made


@pytest.fixture
def study(world: World) -> Iterator[Study]:
    with orch.open(home=world.settings.home) as opened:
        yield opened


def test_a_lens_is_trained_listed_and_loaded(world: World, study: Study, subject: Path) -> None:
    config = {
        "data": {"source": str(subject / "text.txt"), "context_length": CONTEXT},
        "training": {"batch_tokens": 4 * CONTEXT, "max_tokens": 64 * CONTEXT, "heldout_tokens": 16 * CONTEXT},
    }
    assert study.lenses().empty
    assert "kl" in study.lenses().columns
    job = study.train_lens(subject, name="mine", config=config, tokens=32 * CONTEXT, lr=0.001)
    assert study.train_lens(subject, config=config, tokens=32 * CONTEXT, lr=0.001) == job, "it is there"
    with pytest.raises(StateError, match="there is a lens named 'mine' already"):
        study.train_lens(subject, name="mine", config=config)
    with pytest.raises(NotFound, match=rf"the lens mine is not there: job {job} is queued"):
        study.lens("mine")
    assert study.lenses().set_index("name").loc["mine", "state"] == "queued"
    assert world.work("--until-empty").wait(timeout=200) == 0, world.said()
    study.wait(job)
    row = study.lenses().set_index("name").loc["mine"]
    assert (row.job_id, row.outcome, row.tokens_seen, row.max_tokens) == (job, "max_tokens", 32 * CONTEXT, 32 * CONTEXT)
    assert len(row.kls) == row.n_layers == 2
    for selector in ("mine", job, row.sha256):
        lens = study.lens(selector)
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(lens.back(0, lens.into(0, x)), x, rtol=1e-4, atol=1e-4)
        assert lens.condition(0) == pytest.approx(row.conditions[0])
    assert not lens.into(0, x).equal(x), "it was trained"
    with pytest.raises(ConfigError, match="is not a device"):
        study.lens("mine", device="nowhere")
    (Path(row.uri) / "lens.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no file .*lens\.json"):
        study.lens("mine")


def test_what_cannot_be_asked_for(study: Study, subject: Path) -> None:
    with pytest.raises(NotFound, match="there is no lens 'mine'"):
        study.lens("mine")
    with pytest.raises(ConfigError, match="no language model is named"):
        study.train_lens()
    with pytest.raises(ConfigError, match=r"subject.model: there is no \./nowhere"):
        study.train_lens("./nowhere")
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        study.train_lens(subject, lr=-1.0)
    assert [*study.lenses().columns] == list(LensEntry.__dataclass_fields__)
