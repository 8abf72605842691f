"""Documents from every kind of file, their borders, and what is said when they cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import STANDARD_LIBRARY, DataConfig
from orchestrator.config.text_files import is_local
from orchestrator.errors import ConfigError, SubjectError
from worker.data import documents
from worker.data.documents import PIECE_CHARACTERS, Piece, open_source


def read(source: Path | str, **values: Any) -> list[Piece]:
    return list(open_source(DataConfig(source=str(source), **values)).pieces())


def identity(source: Path | str, **values: Any) -> dict[str, Any]:
    return open_source(DataConfig(source=str(source), **values)).identity


def test_a_url_is_no_pattern_of_files() -> None:
    assert not is_local("https://host/a?token=b")
    assert is_local("texts/part-?.txt")
    assert is_local("texts/*")


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three<|endoftext|>\nfour\n<|endoftext|>\n\n")
    assert read(tmp_path / "a.txt") == [Piece("one\n\ntwo\n", True)]
    assert read(tmp_path / "b.txt") == [Piece("three", True), Piece("four", True)]
    assert read(tmp_path / "*.txt") == read(tmp_path) == read(tmp_path / "a.txt") + read(tmp_path / "b.txt")


def test_long_documents_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(documents, "CONTEXT_CHARACTERS", 20)
    words = "a line of words\n" * 60 + "x" * 350 + " end"
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": words}) + "\n" + json.dumps({"text": "short"}))
    pieces = read(tmp_path / "a.txt")
    assert "".join(p.text for p in pieces) == words
    assert [p.ends for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(p.text) for p in pieces[:5]) < 130
    assert not any("x" in p.text[:1] or "x" in p.text[-1:] for p in pieces), "a word is not parted"
    text = ""
    for piece in pieces:
        assert piece.before == text[-20:]
        text += piece.text
        assert piece.after == ("" if piece.ends else words[len(text) :][:20])
    assert read(tmp_path / "a.jsonl") == [*pieces, Piece("short", True)]


def test_a_word_without_end_is_parted_at_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(documents, "CONTEXT_CHARACTERS", 20)
    (tmp_path / "a.txt").write_text("x" * 10_000)
    pieces = read(tmp_path / "a.txt")
    assert "".join(p.text for p in pieces) == "x" * 10_000
    assert max(len(p.text) for p in pieces) < 20 * 100


@pytest.mark.parametrize("length", [PIECE_CHARACTERS - n for n in (-1, 0, 1, 7, 12, 13, 14)])
def test_a_separator_is_found_wherever_a_long_line_is_read_to(length: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * length + "<|endoftext|>  \ntwo")
    assert [p.text.lstrip("x") for p in read(tmp_path / "a.txt")] == ["", "two"]
    (tmp_path / "a.txt").write_text("x" * length + "<|endoftext|>two\nthree")
    assert [p.text.lstrip("x") for p in read(tmp_path / "a.txt")] == ["<|endoftext|>two\nthree"], "in a line"


def test_json_lines_and_parquet_give_a_column(tmp_path: Path) -> None:
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows = [{"body": "one", "n": 1}, {"body": None, "n": 2}, {"body": "two", "n": 3}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, text_column="body") == [Piece("one", True), Piece("two", True)]
        with pytest.raises(ConfigError, match=rf"(?s)text_column: .*{name}.* no column 'text'.*columns: .*n"):
            read(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"(?s)text_column: .*{name}, (line|row) 1 has 1 under 'n', not text"):
            read(tmp_path / name, text_column="n")


def test_the_content_is_the_identity(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one")
    second.write_text("one")
    assert identity(first) == identity(second) == identity(first, text_column="body")
    second.write_text("two")
    assert identity(first) != identity(second)
    (tmp_path / "a.jsonl").write_text("{}")
    assert identity(tmp_path / "a.jsonl") != identity(tmp_path / "a.jsonl", text_column="body")


def test_the_standard_library_is_text() -> None:
    source = open_source(DataConfig(source=STANDARD_LIBRARY))
    assert len(source.identity["sha256"]) == 64
    assert "import" in next(source.pieces()).text


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("gone.txt", None, ConfigError, "no file .*gone.txt"),
        ("a.csv", b"a,b", ConfigError, r"(?s)a.csv is not text.*\.parquet"),
        ("a.txt", b"fine\ncaf\xe9 au lait", SubjectError, "a.txt, line 2, is not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', SubjectError, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, SubjectError, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"[1]", SubjectError, '(?s)a.jsonl, line 1: not a JSON object.*"text": '),
        ("a.jsonl", b'{"text": ["a"]}', ConfigError, "line 1 has a list under 'text', not text"),
        ("a.jsonl", b'\n{"text": "ab\\ud83d c"}', SubjectError, r"line 2: character 3 of 'text' is half .*ud83d"),
        ("a.parquet", b"nothing", SubjectError, "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, error: type, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        read(tmp_path / name)


def test_what_is_hidden_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".a.txt").write_text("a copy")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.txt").write_text("a copy")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".#c.txt").write_text("a copy")
    (tmp_path / "in" / "c.TXT").write_bytes(b"\xef\xbb\xbftwo")
    one, two = Piece("one", True), Piece("two", True)
    assert read(tmp_path) == read(tmp_path / "**/*.[tT]*") == [one, two]
    assert read(tmp_path / "*.txt") == [one]
    assert read(tmp_path / ".a.txt") == read(tmp_path / ".a*") == read(tmp_path / ".git") == [Piece("a copy", True)]


def test_a_link_is_judged_and_ordered_by_its_own_name(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    for blob, name in (("f00", "a.txt"), ("0ff", "b.txt")):
        (blobs / blob).write_text(name)
        (folder / name).symlink_to(blobs / blob)
    expected = [Piece("a.txt", True), Piece("b.txt", True)]
    assert read(folder) == read(folder / "*.txt") == expected
    assert read(folder / "a.txt") == expected[:1]
    (folder / "copy.txt").symlink_to(blobs / "f00")
    (folder / "loop").symlink_to(folder)
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    assert read(folder) == expected, "one file is one text, whatever its names"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.txt").write_text("c.txt")
    assert read(folder) == [*expected, Piece("c.txt", True)]
    (blobs / "0ff").unlink()
    with pytest.raises(ConfigError, match=r"b\.txt is a link to a file that is gone"):
        read(folder)


def test_a_data_set_without_network_is_said() -> None:
    with pytest.raises(SubjectError, match="neither a file nor a cached data set"):
        read("nobody/nothing")
