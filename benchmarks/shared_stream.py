"""Eight SAEs of one stream of activations, together against one after another, in one interleaved run: medians.

A round takes one window of a subject of GPT-2 small's size (random weights, read behind layer 6) and trains every SAE
on it. together: captured once, each SAE its own step on every batch.  apart: captured again for each SAE.
floor: the capture alone, once: what no sharing can go below. Prints a table and a line of JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from worker.activations.stream import heldout, sample, stream
from worker.data.token_file import TokenFile
from worker.sae.train_state import TrainState
from worker.subject.model import Subject, load
from worker.subject.model_files import quiet
from worker.trainer.train import Progress, train

D_MODEL, LAYER, CONTEXT, VOCABULARY = 768, 6, 128, 512
SIZES = ((256, 8), (256, 16), (512, 8), (512, 16), (512, 32), (1024, 8), (1024, 16), (1024, 32))
"""n_latents and k of each SAE."""
TARGET = 0.35


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="small windows, few rounds: under a minute on two cores")
    options.add_argument("--jobs", type=int, default=8, help="SAEs; 8 by default")
    options.add_argument("--rounds", type=int, default=0)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    rounds, window = chosen.rounds or (1 if chosen.short else 5), 4096 if chosen.short else 16_384
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu = measure(Path(folder), n_jobs=chosen.jobs, rounds=rounds, window_tokens=window)
    ratio = seconds["together"] / seconds["apart"]
    print(
        f"{chosen.jobs} SAEs of {D_MODEL} dimensions, windows of {window:,} tokens, {chosen.threads} threads, ", end=""
    )
    print(f"torch {torch.__version__}, medians of {rounds} rounds\n")
    print(f"{'':>10}{'s/window':>10}{'CPU s':>10}{'SAE tokens/s':>14}{'of apart':>10}{'CPU':>8}")
    for name, took in seconds.items():
        share, cpu_share = took / seconds["apart"], cpu[name] / cpu["apart"]
        print(f"{name:>10}{took:>10.2f}{cpu[name]:>10.2f}", end="")
        print(f"{chosen.jobs * window / took:>14,.0f}{share:>10.3f}{cpu_share:>8.3f}")
    print(f"\ntogether / apart = {ratio:.3f} (target: {TARGET} or less); 1/{chosen.jobs} = {1 / chosen.jobs:.3f}")
    print(json.dumps({"jobs": chosen.jobs, "window_tokens": window, "seconds": seconds, "cpu": cpu, "ratio": ratio}))


def measure(
    folder: Path,
    *,
    n_jobs: int,
    rounds: int,
    window_tokens: int,
    only: Collection[str] = ("floor", "together", "apart"),
) -> tuple[dict[str, float], ...]:
    """Return the wall seconds and the CPU seconds of a window, by name: capture alone, SAEs together, and apart."""
    configs = [
        _config(folder, n, k, seed=at, window_tokens=window_tokens)
        for at, (n, k) in enumerate((SIZES * (1 + n_jobs // len(SIZES)))[:n_jobs])
    ]
    subject = gpt2_small(folder)
    tokens = random_text(folder / "text.u16", n_contexts=4 * window_tokens // CONTEXT)
    held, found = heldout(subject, tokens, configs[0]), sample(subject, tokens, configs[0], 4096)

    def fresh() -> list[TrainState]:
        made = [TrainState.fresh(config, found) for config in configs]
        for state in made:
            state.untrained_fvu = 1.0  # else the first step would measure it
        return made

    batches = window_tokens // configs[0].training.batch_tokens
    shared = together(stream(subject, tokens, configs[0]), fresh(), configs, held=held)
    several = [
        train(state, stream(subject, tokens, config), config=config, heldout=held)
        for state, config in zip(fresh(), configs, strict=True)
    ]
    alone = stream(subject, tokens, configs[0])
    work: dict[str, Callable[[], object]] = {
        "floor": lambda: _take(alone, batches),
        "together": lambda: _take(shared, batches),
        "apart": lambda: [_take(steps, batches) for steps in several],
    }
    return interleaved({name: work[name] for name in only}, rounds=rounds)


def together(
    batches: Iterator[Tensor], states: Sequence[TrainState], configs: Sequence[JobConfig], *, held: Tensor
) -> Iterator[list[Progress]]:
    """Train all on each batch, as the trainer does: a generator each, advanced by one step per shared batch."""
    given: list[Tensor] = []

    def shared() -> Iterator[Tensor]:
        while True:
            yield given[0]

    steps = [train(state, shared(), config=config, heldout=held) for state, config in zip(states, configs, strict=True)]
    for batch in batches:
        given[:] = [batch]
        yield [next(step) for step in steps]


def interleaved(work: dict[str, Callable[[], object]], *, rounds: int) -> tuple[dict[str, float], ...]:
    """Return the median seconds of each, and of the CPU, which says more on a busy machine; all once per round."""
    clocks = (time.perf_counter, time.process_time)
    taken: dict[str, list[list[float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            started = [clock() for clock in clocks]
            run()
            taken[name].append([clock() - start for clock, start in zip(clocks, started, strict=True)])
    medians = {name: [statistics.median(found) for found in zip(*times, strict=True)] for name, times in taken.items()}
    return tuple({name: found[at] for name, found in medians.items()} for at in range(len(clocks)))


def gpt2_small(folder: Path) -> Subject:
    """Make GPT-2 small of random weights; few tokens are known, for an embedding is looked up whatever its height."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    described: Any = GPT2Config
    shape = {"n_embd": D_MODEL, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": VOCABULARY}
    GPT2LMHeadModel(described(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / "model")
    maker: Any = AutoTokenizer
    maker.from_pretrained(SHIPPED_FOLDER).save_pretrained(folder / "model")
    return load(_config(folder, 256, 8, seed=0, window_tokens=4096).subject)


def random_text(path: Path, *, n_contexts: int) -> TokenFile:
    ids = np.random.default_rng(0).integers(VOCABULARY, size=n_contexts * CONTEXT, dtype=np.uint16)
    ids.tofile(path)
    return TokenFile(path, "random", len(ids), VOCABULARY - 1, CONTEXT, ())


def _config(folder: Path, n_latents: int, k: int, *, seed: int, window_tokens: int) -> JobConfig:
    return parse(
        {
            "subject": {"model": str(folder / "model"), "layer": LAYER},
            "data": {"context_length": CONTEXT, "special_tokens": "train"},
            "sae": {"n_latents": n_latents, "k": k},
            "training": {
                "batch_tokens": 2048, "shuffle_tokens": window_tokens, "heldout_tokens": 2048, "seed": seed,
                "max_tokens": 2**40, "first_point_tokens": 2**40,
            },
        }
    )  # fmt: skip


def _take(steps: Iterator[object], n: int) -> int:
    return sum(1 for _ in islice(steps, n))


if __name__ == "__main__":
    main()
