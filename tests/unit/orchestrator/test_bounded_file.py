"""What is read whole has a bound, and says so."""

from pathlib import Path

import pytest

from orchestrator.bounded_file import MOST_OF_A_CONFIG, read_text
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.settings import load
from orchestrator.sweep import expand
from worker import checked_folder


def _huge(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(MOST_OF_A_CONFIG + 1)
    return path


def test_up_to_the_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("größe")
    assert read_text(tmp_path / "a", what="a file", most=7) == "größe"
    with pytest.raises(ConfigError, match=r"larger than 6e-06 MB, the most that is read of a file"):
        read_text(tmp_path / "a", what="a file", most=6)


def test_what_has_no_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero is larger than 16 MB, the most that is read of a sweep file"):
        expand(Path("/dev/zero"))


def test_a_base_a_settings_file_and_a_manifest_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(f"base: {_huge(tmp_path / 'base.yaml')}\nsae.k: 4\n")
    with pytest.raises(ConfigError, match=r"base.yaml is larger than 16 MB"):
        expand(tmp_path / "sweep.yaml")
    _huge(tmp_path / "orch.toml")
    with pytest.raises(ConfigError, match=r"orch.toml is larger than 16 MB, the most that is read of settings"):
        load(start=tmp_path, environ={})
    _huge(tmp_path / "manifest.json")
    with pytest.raises(CheckpointError, match=r"larger than 16 MB, the most that is read of a manifest"):
        checked_folder.verify(tmp_path)
