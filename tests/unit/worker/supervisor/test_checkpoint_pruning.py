"""Which checkpoints of an attempt stay."""

import shutil
from pathlib import Path

import pytest

from worker.supervisor import attempt


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "state").write_text("weights")


def test_older_ones_go_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "64", "128", "192", "1024", "final", ".256.7.partial")
    attempt.prune(tmp_path, older_than=192)
    assert {path.name for path in tmp_path.iterdir()} == {"192", "1024", "final", ".256.7.partial"}


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    attempt.prune(tmp_path / "none", older_than=192)


def test_killed_in_the_middle_it_leaves_no_half_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fill(tmp_path, "64", "128")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            attempt.prune(tmp_path, older_than=128)
    assert {path.name for path in tmp_path.iterdir()} == {".64.partial", "128"}  # which `orch gc` takes
