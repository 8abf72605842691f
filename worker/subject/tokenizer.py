"""A subject's tokenizer: the tokens that its tokenizer.json gives, whatever class its config names. Loads no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.job import SubjectConfig
from orchestrator.errors import SubjectError
from worker.subject import hub

FILE_NAME = "tokenizer.json"
_VOCABULARIES = (FILE_NAME, "vocab*.json", "vocab*.txt", "*.model", "merges.txt", "tekken.json")
_HINT = "Give a folder with tokenizer.json beside the weights: tokenizer.save_pretrained writes it."


def load_tokenizer(folder: Path, config: SubjectConfig) -> Any:
    """Load the tokenizer of a folder: what tokenizer.json says, with the special tokens that other files name.

    A class that the folder names builds its own pre-tokenizer and normaliser over the file's vocabulary, and may give
    other tokens than the model was trained with: where there is a tokenizer.json, only its special tokens are taken.

    Raises:
        SubjectError: there is none, or it has no vocabulary.
    """
    if not config.trust_remote_code and not any(any(folder.glob(name)) for name in _VOCABULARIES):
        raise SubjectError(f"{config.model} holds no vocabulary of a tokenizer", hint=_HINT)
    try:
        named = _of_named_class(folder, config)
        if (folder / FILE_NAME).is_file():
            return _of_file(folder / FILE_NAME, named)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the libraries raise all kinds, Exception itself among them
        reason = hub.first_line(error)
        raise SubjectError(f"the tokenizer of {config.model} cannot be loaded: {reason}", hint=_HINT) from error
    if not len(named):
        raise SubjectError(f"{config.model} holds no tokenizer", hint=_HINT)
    files = [name for kind, name in type(named).vocab_files_names.items() if kind != "tokenizer_file"]
    if files and not any((folder / name).is_file() for name in files):
        raise SubjectError(  # the class made up a vocabulary of its special tokens
            f"{config.model} names a {type(named).__name__}, and holds none of its files: {', '.join(files)}",
            hint=_HINT,
        )
    return named


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that mark something and are no text: named ones (BOS, EOS, …) and those marked so.

    A chat marker often has no name, and is marked special in tokenizer.json or in `added_tokens_decoder` alone.
    """
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(marked | set(tokenizer.all_special_ids)))


def tokenizer_json(tokenizer: Any) -> dict[str, Any] | None:
    """Return what decides the tokens of a text, as tokenizer.json has it; None of a tokenizer written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts: dict[str, Any] = json.loads(backend.to_str())
    # Calls leave these two behind; they do not decide the tokens of a call that sets neither.
    return {key: value for key, value in parts.items() if key not in {"truncation", "padding"}}


def unknown_id(tokenizer: Any) -> int | None:
    """Return the id that stands for text the vocabulary has no token for; None where there is none.

    Read from the model of the vocabulary: a class may name an unknown token that its vocabulary never gives.
    """
    parts = tokenizer_json(tokenizer)
    if parts is None:
        return None if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
    model: Mapping[str, Any] = parts["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    found = model["vocab"].get(model["unk_token"]) if model.get("unk_token") else None
    return None if found is None else int(found)


def _of_named_class(folder: Path, config: SubjectConfig) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)


def _of_file(file: Path, named: Any) -> Any:
    """Return the tokenizer of a tokenizer.json, with those special tokens of another that it knows."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(file))
    names = {name: token for name, token in named.special_tokens_map.items() if isinstance(token, str)}
    known = {name: token for name, token in names.items() if backend.token_to_id(token) is not None}
    marked = (str(token) for token in named.added_tokens_decoder.values() if token.special)
    extra = [token for token in marked if backend.token_to_id(token) is not None and token not in known.values()]
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, extra_special_tokens=extra, **known)
