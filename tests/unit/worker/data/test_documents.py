"""Documents from every kind of file, their borders, and what is said when they cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import STANDARD_LIBRARY, DataConfig
from orchestrator.errors import ConfigError, SubjectError
from worker.data import documents
from worker.data.documents import Piece, open_source


def read(source: Path | str, **values: Any) -> list[Piece]:
    return list(open_source(DataConfig(source=str(source), **values)).pieces())


def identity(source: Path | str, **values: Any) -> dict[str, Any]:
    return open_source(DataConfig(source=str(source), **values)).identity


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three<|endoftext|>\nfour\n<|endoftext|>\n\n")
    assert read(tmp_path / "a.txt") == [Piece("one\n\ntwo\n", True)]
    assert read(tmp_path / "b.txt") == [Piece("three", True), Piece("four", True)]
    assert read(tmp_path / "*.txt") == read(tmp_path) == read(tmp_path / "a.txt") + read(tmp_path / "b.txt")


def test_long_documents_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 10)
    words = "a line\n" * 5 + "x" * 35
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": words}) + "\n" + json.dumps({"text": "short"}))
    pieces = read(tmp_path / "a.txt")
    assert "".join(p.text for p in pieces) == words
    assert [p.ends for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(p.text) for p in pieces) < 20
    assert read(tmp_path / "a.jsonl") == [*pieces, Piece("short", True)]


def test_json_lines_and_parquet_give_a_column(tmp_path: Path) -> None:
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows = [{"body": "one", "n": 1}, {"body": None, "n": 2}, {"body": "two", "n": 3}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, text_column="body") == [Piece("one", True), Piece("two", True)]
        for column in ("text", "n"):
            with pytest.raises(
                ConfigError, match=rf"(?s)text_column: .*{name}.* no text under '{column}'.*columns: .*n"
            ):
                read(tmp_path / name, text_column=column)


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
        ("a.txt", b"caf\xe9 au lait", SubjectError, "a.txt is not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', SubjectError, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]", ConfigError, "a.jsonl, line 1 has no text"),
        ("a.parquet", b"nothing", SubjectError, "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, error: type, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        read(tmp_path / name)


def test_a_data_set_without_network_is_said() -> None:
    with pytest.raises(SubjectError, match="neither a file nor a cached data set"):
        read("nobody/nothing")
