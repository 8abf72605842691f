"""Checkpoints: whole or absent, checked on the way in, never of another config."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.errors import CheckpointError, CheckpointsElsewhere, StorageError
from tests.full_disk import files_of_at_most
from worker.formats.native import save_final
from worker.sae.train_state import TrainState
from worker.supervisor.attempt import prune
from worker.trainer import checkpoint
from worker.trainer.train import train

FACTS = {"subject": "tiny", "lr": 0.1}


def _config(k: int = 3) -> JobConfig:
    training = {"batch_tokens": 32, "shuffle_tokens": 32, "max_tokens": 320, "first_point_tokens": 64}
    return parse({"sae": {"n_latents": 40, "k": k}, "training": training})


def _state(n_steps: int = 5) -> TrainState:
    x = torch.randn(n_steps * 32 + 256, 8, generator=torch.Generator().manual_seed(0))
    state = TrainState.fresh(_config(), x[:256])
    batches = [x[256 + 32 * i : 288 + 32 * i] for i in range(n_steps)]
    for _ in train(state, batches, config=_config(), heldout=x[:64]):
        pass
    return state


@pytest.mark.parametrize("n_steps", [0, 5])
def test_there_and_back(tmp_path: Path, n_steps: int) -> None:
    state = _state(n_steps)
    saved = checkpoint.save(tmp_path, state, _config(), facts=FACTS)
    assert Path(saved.uri) == tmp_path / str(32 * n_steps)
    assert saved.tokens_seen == 32 * n_steps
    loaded = checkpoint.load(saved.uri, _config(), sha256=saved.sha256)
    assert loaded.values() == state.values()
    before, after = state.tensors(), loaded.tensors()
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert [path.name for path in tmp_path.iterdir()] == [str(32 * n_steps)]


def test_saving_twice_leaves_the_first(tmp_path: Path) -> None:
    state = _state()
    first = checkpoint.save(tmp_path, state, _config(), facts=FACTS)
    assert checkpoint.save(tmp_path, state, _config(), facts={}) == first
    (tmp_path / "160" / "trainer.json").write_text("{}")
    again = checkpoint.save(tmp_path, state, _config(), facts=FACTS)  # a damaged one is replaced
    assert checkpoint.load(again.uri, _config()).tokens_seen == 160


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    state = _state()
    state.curve[-1] = state.curve[-1]._replace(fvu=float("nan"), loss=float("inf"))
    loaded = checkpoint.load(checkpoint.save(tmp_path, state, _config(), facts={}).uri, _config())
    assert str(loaded.curve) == str(state.curve)


@pytest.mark.parametrize("name", ["state.safetensors", "trainer.json", "config.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    saved = checkpoint.save(tmp_path, _state(), _config(), facts=FACTS)
    path = Path(saved.uri) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        checkpoint.load(saved.uri, _config(), sha256=saved.sha256)


def test_another_config_or_another_checkpoint_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, _state(), _config(), facts=FACTS)
    with pytest.raises(CheckpointError, match="another config"):
        checkpoint.load(saved.uri, _config(k=4))
    with pytest.raises(CheckpointError, match="recorded"):
        checkpoint.load(saved.uri, _config(), sha256="0" * 64)
    with pytest.raises(CheckpointError, match="is not as it was written"):
        checkpoint.load(str(tmp_path / "nowhere"), _config())


def test_f24_the_newest_readable_is_taken(tmp_path: Path) -> None:
    old = checkpoint.save(tmp_path / "1", _state(3), _config(), facts=FACTS)
    new = checkpoint.save(tmp_path / "2", _state(5), _config(), facts=FACTS)
    refs = [new.uri, old.uri]
    found = checkpoint.newest_readable(refs, _config(), folder=tmp_path)
    assert found is not None
    assert found[0] == new.uri
    (Path(new.uri) / "state.safetensors").write_bytes(b"")
    found = checkpoint.newest_readable(refs, _config(), folder=tmp_path)
    assert found is not None
    assert (found[0], found[1].tokens_seen) == (old.uri, 96)
    (Path(old.uri) / "manifest.json").write_bytes(b"")
    assert checkpoint.newest_readable(refs, _config(), folder=tmp_path) is None


def test_one_that_no_row_knows_counts_where_its_own_folder_proves_it(tmp_path: Path) -> None:
    known = checkpoint.save(tmp_path / "1", _state(3), _config(), facts=FACTS)
    other = _config().model_copy(update={"stop": _config().stop.model_copy(update={"epsilon": 0.5})})
    checkpoint.save(tmp_path / "9", _state(7), other, facts=FACTS)
    later = checkpoint.save(tmp_path / "1", _state(5), _config(), facts=FACTS)
    for uris in ([], [known.uri], [str(tmp_path / "1" / "32")]):  # the last: a row from before it was pruned
        found = checkpoint.newest_readable(uris, _config(), folder=tmp_path)
        assert found is not None
        assert found[0] == later.uri, "the newest of this config"


@pytest.mark.parametrize("n_bytes", [0, 100, 3000])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, n_bytes: int) -> None:
    state = _state()
    old = checkpoint.save(tmp_path, _state(3), _config(), facts=FACTS)
    with files_of_at_most(n_bytes), pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path, state, _config(), facts=FACTS)
    with files_of_at_most(n_bytes), pytest.raises(StorageError, match="cannot write"):
        save_final(tmp_path, state, _config(), facts=FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["96"]
    assert checkpoint.load(old.uri, _config()).tokens_seen == 96


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path / "file", _state(), _config(), facts=FACTS)


def test_prune_keeps_what_is_acknowledged_and_newer_and_the_final(tmp_path: Path) -> None:
    for n_steps in (1, 3, 5):
        checkpoint.save(tmp_path, _state(n_steps), _config(), facts=FACTS)
    save_final(tmp_path, _state(), _config(), facts=FACTS)
    prune(tmp_path, older_than=96)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["160", "96", "final"]
    prune(tmp_path / "nowhere", older_than=96)


def test_a_disk_that_is_away_is_no_damage(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path / "1", _state(), _config(), facts=FACTS)
    away = str(tmp_path / "away" / "32")
    with pytest.raises(CheckpointsElsewhere, match="none of 1 checkpoint is there"):
        checkpoint.newest_readable([away], _config(), folder=tmp_path / "2")
    found = checkpoint.newest_readable([away, saved.uri], _config(), folder=tmp_path)
    assert found is not None
    assert found[0] == saved.uri


def test_colleagues_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, _state(), _config(), facts=FACTS)
    modes = {path.stat().st_mode for path in Path(saved.uri).iterdir()}
    assert len(modes) == 1
