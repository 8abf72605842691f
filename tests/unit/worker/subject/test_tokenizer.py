"""The tokenizer that is used is the one in tokenizer.json, with every special token; a vocabulary is never made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import SubjectConfig
from orchestrator.errors import SubjectError
from tests.unit.worker.subject.tiny_models import save_model
from worker.subject.tokenizer import load_tokenizer, special_ids, unknown_id

TEXT = "def halve(x):\n    return 1000 // 2  # <|user|> it's\n\n\nclass  A: ...\n"


def load(folder: Path, **values: Any) -> Any:
    return load_tokenizer(folder, SubjectConfig(model=str(folder), **values))


def byte_level(markers: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=markers, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT * 20], trainer)
    return made


def metaspace(markers: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[*markers, "<unk>"], show_progress=False)
    made.train_from_iterator([TEXT * 20], trainer)
    return made


def save(made: Any, family: str, folder: Path, **tokenizer_config: Any) -> Path:
    """Write a model's folder whose tokenizer.json is this tokenizer, as `save_pretrained` writes it."""
    from transformers import PreTrainedTokenizerFast

    save_model(family, folder)
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer_config))
    return folder


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("named", [None, "Qwen2Tokenizer", "LlamaTokenizer", "GPT2TokenizerFast"])
def test_tokens_are_those_of_the_file(family: str, make: Any, named: str | None, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    chosen = {"tokenizer_class": named} if named else {}
    folder = save(make(["<s>", "</s>", "<|user|>"]), family, tmp_path, **chosen)
    in_file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    used = load(folder)
    assert used(TEXT, add_special_tokens=False)["input_ids"] == in_file.encode(TEXT, add_special_tokens=False).ids
    assert (used.bos_token_id, used.eos_token_id) == (0, 1)
    assert len(used) == in_file.get_vocab_size(), "a class adds no token that the model was not trained with"


def test_every_token_marked_special_counts(tmp_path: Path) -> None:
    folder = save(byte_level(["<s>", "</s>", "<|user|>"]), "llama", tmp_path)
    assert special_ids(load(folder)) == (0, 1, 2), "a chat marker has no name, and is marked in tokenizer.json"
    values = json.loads((folder / "tokenizer.json").read_text())
    for token in values["added_tokens"]:
        token["special"] = token["content"] != "<|user|>"
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert special_ids(load(folder)) == (0, 1)
    file = folder / "tokenizer_config.json"
    marked = {"2": {"content": "<|user|>", "special": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": marked}))
    assert special_ids(load(folder)) == (0, 1, 2), "marked in added_tokens_decoder alone"


def test_the_unknown_token_is_that_of_the_vocabulary(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = save(metaspace(["<s>", "</s>"]), "llama", tmp_path / "metaspace")
    assert unknown_id(load(folder)) == load(folder).convert_tokens_to_ids("<unk>")
    folder = save(byte_level(["<s>", "</s>"]), "gpt2", tmp_path / "bytes", unk_token="</s>")
    assert unknown_id(load(folder)) is None, "it knows every byte, whatever its class names"
    wrapped: Any = PreTrainedTokenizerFast
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("?", -2.0)], unk_id=1, byte_fallback=False))
    assert unknown_id(wrapped(tokenizer_object=unigram)) == 1


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gpt_neox"])
def test_a_vocabulary_is_never_made_up(family: str, tmp_path: Path) -> None:
    folder = save(byte_level(["<s>", "</s>"]), family, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SubjectError, match=r"(?s)holds no vocabulary.*tokenizer.json"):
        load(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SubjectError, match="holds no vocabulary"):
        load(folder)
    (folder / "vocab-of-another-kind.json").write_text("{}")
    with pytest.raises(SubjectError, match=r"cannot be loaded|holds none of its files"):
        load(folder)


@pytest.mark.parametrize("written", ["", "[]", '{"version": "1.0"}', None])
def test_a_damaged_file_is_said(written: str | None, tmp_path: Path) -> None:
    file = save(byte_level(["<s>", "</s>"]), "gpt_neox", tmp_path) / "tokenizer.json"
    another_model = json.dumps(json.loads(file.read_text()) | {"model": {"type": "Other"}})
    file.write_text(another_model if written is None else written)
    with pytest.raises(SubjectError, match=r"(?s)the tokenizer of .* cannot be loaded: .+save_pretrained"):
        load(tmp_path)
