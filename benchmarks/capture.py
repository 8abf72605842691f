"""Capture against its floor, in one interleaved run: tokens per second, medians.

bare: the model cut off behind the hooked block, run on the same batches; no hooks, no checks, nothing kept.
stream: what a trainer takes: shuffled, normalised, checked batches.  3 hooks: from one forward, and from three.
cache: the same batches, read from disk.  Floor: 2 operations per parameter that works on a token and per token, at the
speed of a product of the model's own shape, (pass, d) x (d, 4d).
Prints a table and a line of JSON. `--full` adds a model of GPT-2 small's size, random weights (minutes on two cores).
"""

import argparse
import copy
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from worker.activations.cached_forward import CacheStore
from worker.activations.forward import CPU_TOKENS, attention
from worker.activations.stream import shared_stream
from worker.data.token_file import TokenFile
from worker.subject.model import Subject, load
from worker.subject.model_files import quiet

CONTEXT = 128


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="fewer rounds: under 45 s on two cores")
    options.add_argument("--full", action="store_true", help="also a model of GPT-2 small's size")
    options.add_argument("--rounds", type=int, default=0)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    rounds = chosen.rounds or (5 if chosen.short else 15)
    torch.set_num_threads(chosen.threads)
    quiet()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        found.append(
            measure("shipped", str(SHIPPED_FOLDER), Path(folder), rounds=rounds, window_passes=2 if chosen.short else 4)
        )
        if chosen.full:
            small = gpt2_small(Path(folder) / "gpt2-small")
            found.append(measure("GPT-2 small", small, Path(folder), rounds=min(rounds, 5), window_passes=1))
    print(f"{chosen.threads} threads, torch {torch.__version__}, contexts of {CONTEXT}, medians of {rounds} rounds\n")
    for row in found:
        print(f"{row['model']}: layers {row['layers']}, d_model {row['d_model']}, {row['attention']} attention")
        print(f"{'':>24}{'tokens/s':>10}{'of bare':>9}")
        for name, speed in row["tokens_per_second"].items():
            print(f"{name:>24}{speed:>10,.0f}{row['ratios'][name]:>9.3f}")
    print(json.dumps(found))


def measure(name: str, model: str, folder: Path, *, rounds: int, window_passes: int) -> dict[str, Any]:
    tokens_per_window = window_passes * CPU_TOKENS
    training = {"batch_tokens": 2048, "shuffle_tokens": tokens_per_window, "heldout_tokens": CONTEXT}
    data = {"context_length": CONTEXT, "special_tokens": "train", "activations": "cache"}
    config = parse({"subject": {"model": model}, "data": data, "training": training})
    subject = load(config.subject)
    last = subject.hook.layer or 0
    layers = [last - 2, last - 1, last]
    configs = [
        parse(config.model_dump(exclude={"subject"}) | {"subject": {"model": model, "layer": i}}) for i in layers
    ]
    subjects = [subject.at(one.subject) for one in configs]
    tokens = random_text(folder / f"{name}.u16", subject, n_contexts=2 * tokens_per_window // CONTEXT + 1)
    store = CacheStore(folder / "activations", 10**10)
    take = {
        "stream": windows([subject], tokens, configs[2:], n=tokens_per_window),
        "3 hooks, one forward": windows(subjects, tokens, configs, n=tokens_per_window),
        "3 hooks, three": three(subjects, tokens, configs, n=tokens_per_window),
        "cache": windows([subject], tokens, configs[2:], n=tokens_per_window, store=store),
    }
    ids = torch.from_numpy(tokens.contexts(np.arange(tokens_per_window // CONTEXT)))
    bare = cut_off(subject, last)
    work: dict[str, Callable[[], object]] = {"floor": product(subject), "bare": lambda: run(bare, ids)}
    work |= {key: lambda steps=steps: next(steps) for key, steps in take.items()}  # type: ignore[misc]
    seconds = interleaved(work, rounds=rounds)
    flops = 2.0 * subject.parameters_run
    per_flop = seconds["floor"] / (2.0 * CPU_TOKENS * 4 * subject.d_model**2)
    speeds = {key: tokens_per_window / took for key, took in seconds.items()} | {"floor": 1 / (per_flop * flops)}
    store.close()
    return {
        "model": name,
        "layers": layers,
        "d_model": subject.d_model,
        "attention": attention(subject),
        "flops_per_token": flops,
        "tokens_per_second": speeds,
        "ratios": {key: speed / speeds["bare"] for key, speed in speeds.items()},
    }


def windows(
    subjects: Sequence[Subject],
    tokens: TokenFile,
    configs: Sequence[JobConfig],
    *,
    n: int,
    store: CacheStore | None = None,
) -> Iterator[int]:
    """Take all batches of one window after another."""
    batches = shared_stream(subjects, tokens, configs, store=store)
    while True:
        yield sum(1 for _ in islice(batches, n // configs[0].training.batch_tokens))


def three(
    subjects: Sequence[Subject], tokens: TokenFile, configs: Sequence[JobConfig], *, n: int
) -> Iterator[tuple[int, ...]]:
    several = [windows([s], tokens, [c], n=n) for s, c in zip(subjects, configs, strict=True)]
    while True:
        yield tuple(next(one) for one in several)


def cut_off(subject: Subject, last: int) -> Any:
    """Return the trunk of a GPT-2 up to a block, without the final norm."""
    trunk = copy.copy(subject.model.transformer)
    trunk._modules = dict(trunk._modules)
    trunk.h, trunk.ln_f = nn.ModuleList(list(trunk.h)[: last + 1]), nn.Identity()
    return trunk


def run(trunk: Any, ids: Tensor) -> None:
    per_pass = CPU_TOKENS // CONTEXT
    with torch.inference_mode():
        for first in range(0, len(ids), per_pass):
            trunk(input_ids=ids[first : first + per_pass], use_cache=False)


def product(subject: Subject) -> Callable[[], object]:
    x, weight = torch.randn(CPU_TOKENS, subject.d_model), torch.randn(subject.d_model, 4 * subject.d_model)
    return lambda: x @ weight


def random_text(path: Path, subject: Subject, *, n_contexts: int) -> TokenFile:
    ids = np.random.default_rng(0).integers(0, subject.vocabulary, n_contexts * CONTEXT).astype(np.uint16)
    ids.tofile(path)
    return TokenFile(path, path.stem, len(ids), int(ids.max()), CONTEXT, ())


def gpt2_small(folder: Path) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small: Any = GPT2LMHeadModel(GPT2Config())
    small.save_pretrained(folder)
    for path in SHIPPED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    return str(folder)


def interleaved(work: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taken in turns; the first two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 2):
        for name, act in work.items():
            started = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


if __name__ == "__main__":
    main()
