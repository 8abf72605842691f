"""A stream of activations of a tiny model on sixty documents of random letters, and ways to look at it."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from orchestrator.config.job import JobConfig
from tests.unit.worker.subject.tiny_models import TEXT, save_model
from worker.activations.cached_forward import CacheStore
from worker.activations.stream import stream
from worker.data.token_file import TokenFile, pack
from worker.subject.model import Subject, load

WINDOW, BATCH = 128, 32


class Parts(NamedTuple):
    subject: Subject
    tokens: TokenFile
    config: JobConfig


def make_parts(folder: Path, *, seed: int = 0) -> Parts:
    letters = random.Random(0)
    documents = "\n".join(json.dumps({"text": "".join(letters.choices(TEXT, k=60))}) for _ in range(60))
    (folder / "text.jsonl").write_text(documents)
    config = JobConfig.model_validate(
        {
            "subject": {"model": str(save_model("gpt2", folder / "model", seed=seed))},
            "data": {"source": str(folder / "text.jsonl"), "context_length": 16},
            "training": {"batch_tokens": BATCH, "shuffle_tokens": WINDOW, "heldout_tokens": 100},
        }
    )
    subject = load(config.subject)
    return Parts(subject, pack(config.data, subject.tokenizer, folder / "tokens"), config)


def change(parts: Parts, part: str, **values: Any) -> Parts:
    known = parts.config.model_dump()
    return parts._replace(config=JobConfig.model_validate(known | {part: known[part] | values}))


def rows(values: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in values}


def first(parts: Parts, n: int, start: int = 0, store: CacheStore | None = None) -> list[Tensor]:
    return list(islice(stream(*parts, start_tokens=start, store=store), n))


@contextmanager
def forwards(parts: Parts) -> Iterator[list[int]]:
    """Note the contexts of every forward pass meanwhile."""
    sizes: list[int] = []
    block = parts.subject.model.transformer.h[0]
    mark = block.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        mark.remove()
