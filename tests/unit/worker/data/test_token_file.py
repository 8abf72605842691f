"""The packed token file: its content, its name, and what survives a packer that dies."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.job import DataConfig
from orchestrator.errors import ConfigError, SubjectError
from tests.unit.worker.subject.tiny_models import TEXT, make_tokenizer
from worker.data import documents, token_file
from worker.data.progress import report_progress
from worker.data.token_file import TokenFile, pack

TOKENIZER = make_tokenizer()
EOS = 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": TEXT * (1 + i % 3)}) for i in range(40)))
    return path


def content(file: TokenFile) -> list[int]:
    return [int(i) for i in np.fromfile(file.path, dtype=np.uint16)]


def config(source: Path, **values: Any) -> DataConfig:
    return DataConfig(source=str(source), **({"context_length": 8} | values))


def test_documents_are_joined_by_the_end_token(source: Path, tmp_path: Path) -> None:
    file = pack(config(source), TOKENIZER, tmp_path / "tokens")
    expected = [
        i for n in range(40) for i in [*TOKENIZER(TEXT * (1 + n % 3), add_special_tokens=False)["input_ids"], EOS]
    ]
    assert content(file) == expected
    assert (file.n_tokens, file.largest_id) == (len(expected), max(expected))
    assert file.n_contexts == len(expected) // 8
    assert file.special_ids == (0, EOS)
    assert file.read().shape == (file.n_contexts, 8)
    assert file.contexts(np.array([2, 0])).tolist() == [expected[16:24], expected[:8]]


def test_bos_takes_the_first_place_of_every_context(source: Path, tmp_path: Path) -> None:
    plain = pack(config(source), TOKENIZER, tmp_path / "tokens")
    file = pack(config(source, prepend_bos=True), TOKENIZER, tmp_path / "tokens")
    assert file.path == plain.path
    assert file.n_contexts == file.n_tokens // 7
    assert file.contexts(np.array([1])).tolist() == [[0, *content(file)[7:14]]]


def test_the_name_follows_the_content(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    file = pack(config(source), TOKENIZER, folder)
    assert pack(config(source, context_length=16), TOKENIZER, folder).id == file.id
    other = make_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<other>"]})
    assert pack(config(source), other, folder).id != file.id
    assert pack(config(source, max_tokens=100), TOKENIZER, folder).id != file.id
    source.write_text(json.dumps({"text": TEXT}))
    assert pack(config(source), TOKENIZER, folder).id != file.id


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "first", "unigram"])
@pytest.mark.parametrize("text", [TEXT * 400, "x " * 9 + "x" * 30_001 + TEXT * 400, "天地玄黄，宇宙洪荒。" * 2000])
def test_pieces_of_a_long_text_tokenise_as_the_whole(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 8192)
    tokenizer = tokenizer_of(kind)
    (tmp_path / "a.txt").write_text(text)
    pieces = list(documents.open_source(config(tmp_path / "a.txt")).pieces())
    assert len(pieces) > 1 or " " not in text, "a text without gaps is one piece, up to a length"
    found = content(pack(config(tmp_path / "a.txt"), tokenizer, tmp_path / "tokens"))
    assert found == tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenizer_of(kind: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    options: dict[str, Any] = {"vocab_size": 300, "special_tokens": ["<unk>"], "show_progress": False}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **options) if kind == "unigram" else None
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:  # a mark before each word, or before the first of a text alone
        scheme = "first" if kind == "first" else "always"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "first")
    made.train_from_iterator([TEXT], trainer or trainers.BpeTrainer(**options))
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=made)


def test_special_tokens_are_part_of_the_name(source: Path, tmp_path: Path) -> None:
    file = pack(config(source), TOKENIZER, tmp_path / "tokens")
    other = make_tokenizer()
    other.bos_token = "</s>"
    assert pack(config(source), other, tmp_path / "tokens").id != file.id, "a job would go on with other positions"


def test_unknown_tokens_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_of("metaspace")
    (tmp_path / "a.txt").write_text(TEXT * 20)
    assert pack(config(tmp_path / "a.txt"), tokenizer, tmp_path / "tokens").unknown == 0
    assert "unknown" not in capsys.readouterr().err
    (tmp_path / "a.txt").write_text(TEXT + "ЖЖ " * 20)
    for _ in ("packed now", "found packed"):
        file = pack(config(tmp_path / "a.txt"), tokenizer, tmp_path / "tokens")
        assert file.unknown == int((file.read() == 0).sum()) >= 20
        assert f"warning: {file.unknown / file.n_tokens:.0%} of the tokens of" in capsys.readouterr().err


def test_max_tokens_cuts(source: Path, tmp_path: Path) -> None:
    file = pack(config(source, max_tokens=101), TOKENIZER, tmp_path / "tokens")
    assert content(file) == content(pack(config(source), TOKENIZER, tmp_path / "tokens"))[:101]


def test_a_killed_packer_is_continued(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(pack(config(source), TOKENIZER, tmp_path / "whole"))
    monkeypatch.setattr(token_file, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(token_file, "SAVE_SECONDS", 0.0)
    seen: list[int] = []

    def die(done: int) -> None:
        seen.append(done)
        if done > len(whole) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(config(source), TOKENIZER, tmp_path / "tokens", die)
    # Bytes that a dying writer left behind its last saved state.
    with next((tmp_path / "tokens").glob("*.partial")).open("ab") as file:
        file.write(b"torn")
    resumed: list[int] = []
    assert content(pack(config(source), TOKENIZER, tmp_path / "tokens", resumed.append)) == whole
    assert seen[-2] < resumed[1] <= seen[-1] + 100
    assert sorted(p.suffix for p in (tmp_path / "tokens").iterdir()) == [".json", ".lock", ".u16"]


def test_a_damaged_file_is_packed_again(source: Path, tmp_path: Path) -> None:
    file = pack(config(source), TOKENIZER, tmp_path / "tokens")
    whole = content(file)
    with file.path.open("r+b") as out:
        out.truncate(20)
    assert content(pack(config(source), TOKENIZER, tmp_path / "tokens")) == whole


def test_two_trainers_share_one_packing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "BATCH_CHARACTERS", 500)

    def pack_slowly(_: int) -> tuple[TokenFile, int]:
        heard: list[int] = []

        def hear(done: int) -> None:
            heard.append(done)
            time.sleep(0.02)

        file = pack(config(source), make_tokenizer(), tmp_path / "tokens", hear)
        return file, sum(1 for n in heard if n)

    # A lock is held by an open file, so two threads meet as two processes do.
    with ThreadPoolExecutor(2) as pool:
        (one, batches), (other, more) = pool.map(pack_slowly, range(2))
    assert one == other
    assert sorted([batches > 0, more > 0]) == [False, True]


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(SubjectError, match="holds no text"):
        pack(config(empty), TOKENIZER, tmp_path / "tokens")
    bare = make_tokenizer()
    bare.bos_token = None
    with pytest.raises(ConfigError, match=r"prepend_bos: .*no BOS"):
        pack(config(empty, prepend_bos=True), bare, tmp_path / "tokens")
    with pytest.raises(ConfigError, match="context_length: 1"):
        pack(config(empty, prepend_bos=True, context_length=1), TOKENIZER, tmp_path / "tokens")


def test_a_tokenizer_without_end_joins_by_bos_or_nothing(source: Path, tmp_path: Path) -> None:
    bare = make_tokenizer()
    bare.eos_token = None
    assert content(pack(config(source), bare, tmp_path / "tokens")).count(0) == 40
    bare.bos_token = None
    assert not {0, 1} & set(content(pack(config(source), bare, tmp_path / "tokens")))


def test_large_vocabularies_take_four_bytes(tmp_path: Path, source: Path) -> None:
    wide = make_tokenizer()
    wide.add_tokens([f"<{i}>" for i in range(66_000)])
    (tmp_path / "wide.txt").write_text("<65999> fox")
    file = pack(config(tmp_path / "wide.txt", context_length=1), wide, tmp_path / "tokens")
    assert file.path.suffix == ".u32"
    assert file.contexts(np.array([0])).item() == file.largest_id > 65_999


def test_a_log_hears_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with report_progress("packing", None) as report:
        report(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("worker.data.progress.LINE_SECONDS", 0.0)
    with report_progress("packing", None) as report:
        report(5000)
    assert capsys.readouterr().err == "packing: 5,000 tokens\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with report_progress("packing", 10) as report:
        report(5)
    assert documents.PIECE_CHARACTERS < token_file.BATCH_CHARACTERS
