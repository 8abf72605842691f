"""Files and folders that are whole or not there."""

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator.errors import CheckpointError, StorageError
from tests.full_disk import files_of_at_most
from worker.checked_folder import sha256_of_file, verify, write_file, write_folder, write_text


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    write_file(path, b"old")
    with files_of_at_most(2), pytest.raises(OSError, match="too large"):
        write_file(path, b"new content")
    assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["small.json"]
    assert sha256_of_file(path) == hashlib.sha256(b"new").hexdigest()


def test_a_folder_is_replaced_whole_and_its_manifest_names_every_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    first = write_folder(target, lambda folder: write_text(folder / "a", "one"))
    second = write_folder(target, lambda folder: write_text(folder / "b", "two"))
    assert first != second
    assert verify(target) == second
    sums = json.loads((target / "manifest.json").read_text())["sha256"]
    assert sums == {"b": hashlib.sha256(b"two").hexdigest()}
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_what_changed_or_is_missing_is_named(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_folder(target, lambda folder: write_text(folder / "a", "one"))
    (target / "a").write_text("two")
    with pytest.raises(CheckpointError, match="a changed since it was written"):
        verify(target)
    (target / "a").unlink()
    with pytest.raises(CheckpointError, match="there is no file"):
        verify(target)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with files_of_at_most(2), pytest.raises(StorageError, match="cannot write"):
        write_folder(tmp_path / "folder", lambda folder: write_text(folder / "a", "too long"))
    assert not list(tmp_path.iterdir())
