"""Compiling the kernels: once for a folder, and what happens where it cannot be done."""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from worker.sae.native import library
from worker.sae.native.kernels import kernels_for, use
from worker.sae.native.library import NoLibrary, begin, compiled

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@needs_compiler
def test_it_is_compiled_once_and_left_whole(tmp_path: Path) -> None:
    assert isinstance(compiled(tmp_path), ctypes.CDLL)
    (made,) = tmp_path.iterdir()
    written = made.stat().st_mtime_ns
    compiled(tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [written]


@needs_compiler
def test_a_damaged_file_is_built_anew(tmp_path: Path) -> None:
    compiled(tmp_path)
    (made,) = tmp_path.iterdir()
    whole = made.read_bytes()
    other = tmp_path / "other"  # what this process has loaded must not change under it
    other.mkdir()
    (other / made.name).write_bytes(whole[:100])
    compiled(other)
    assert len((other / made.name).read_bytes()) == len(whole)


@needs_compiler
def test_another_source_or_compiler_has_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path)
    for name in ("select.c", "kernels.h"):
        changed = tmp_path / name
        shutil.copytree(library.SOURCES, changed)
        (changed / name).write_text((changed / name).read_text() + "\n")
        with monkeypatch.context() as patch:
            patch.setattr(library, "SOURCES", changed)
            compiled(tmp_path)
    assert len([*tmp_path.glob("kernels-*.so")]) == 3


@needs_compiler
def test_a_library_without_the_functions_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.c").write_text("int something(void) { return 1; }\n")
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    assert "top_k" in (use(tmp_path / "kernels") or "")
    assert kernels_for() is None


def test_without_a_compiler_the_reason_is_told_and_torch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert use(tmp_path / "none") == "no C compiler was found (cc, gcc, clang)"
    assert kernels_for() is None
    for wrong in ("no-such-compiler", 'cc "'):  # the second has a quotation without an end
        monkeypatch.setenv("CC", wrong)
        assert use(tmp_path / wrong) == "no C compiler was found (cc, gcc, clang)"


@pytest.mark.skipif(os.name != "posix", reason="a script as a compiler")
def test_what_a_failing_compiler_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "failing"
    said = r"In file \377\nkernels.c:1: error: no space left"  # the octal is no UTF-8
    failing.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nprintf '{said}' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(
        NoLibrary, match=r"the kernels in C could not be compiled and loaded: kernels\.c:1: error: no space left"
    ):
        compiled(tmp_path / "kernels")
    assert not [*(tmp_path / "kernels").iterdir()]


@needs_compiler
def test_what_was_begun_is_waited_for_and_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".building-left"
    left.mkdir()
    os.utime(left, (0, 0))
    built: list[Path] = []
    build = library._build

    def counted(command: list[str], flags: list[str], path: Path) -> None:
        built.append(path)
        build(command, flags, path)

    monkeypatch.setattr(library, "_build", counted)
    begin(tmp_path)
    assert isinstance(compiled(tmp_path), ctypes.CDLL)
    assert [*tmp_path.iterdir()] == built, "and what a killed process left is gone"
    begin(tmp_path)
    compiled(tmp_path)
    assert len(built) == 1


def test_why_what_was_begun_failed_is_told_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    begin(tmp_path / "none")
    assert use(tmp_path / "none") == "no C compiler was found (cc, gcc, clang)"


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the kernel tells on Linux alone")
def test_where_no_program_may_run_none_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mounted:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(os, "statvfs", lambda _: Mounted)
    assert use(tmp_path / "kernels") == f"{tmp_path / 'kernels'} is on a file system mounted noexec"
    assert not [*tmp_path.iterdir()]
