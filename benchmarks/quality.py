"""Held-out fvu after equal tokens: ours beside other trainers, each at the best of a grid of learning rates.

All train on the same normalised vectors of a subject, in the same order and batches, each from its own start with its
own defaults: ours as a job would be, reporting what a job reports. Rates are doubled and halved from `lr: auto` until
the best is inside the grid, with the first seed; every other seed gets that rate. fvu is Σ‖x − x̂‖² / Σ‖x − mean‖² of
the held-out vectors. Printed for each cell (d, n, k): the mean over seeds and the rate of each trainer, ours as a ratio
to the best of the others, and the spread of that ratio over seeds; then a line of JSON. Others that cannot be imported
are left out. `--short`: one seed, one cell. `--subject FOLDER:LAYER` and `--text`: another than the shipped subject.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.interleaved_timing import table
from benchmarks.peers import PEERS, Peer, sparsify
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.activations.stream import heldout, sample, stream
from worker.data.token_file import pack
from worker.sae.train_state import TrainState
from worker.subject.model import load
from worker.trainer.train import train

EXPANSIONS, KS, BATCH_TOKENS = (4, 16), (8, 32), 512
FACTORS = (0.5, 1.0, 2.0)
"""The first rates, in units of `lr: auto`."""
FURTHEST = 64.0
"""No rate is tried beyond this factor, up or down."""
OTHERS: dict[str, Callable[..., Peer]] = {"sparsify, Signum": partial(sparsify, is_signum=True), **PEERS}


class Vectors(NamedTuple):
    training: list[Tensor]
    heldout: Tensor
    sample: Tensor

    @property
    def d_model(self) -> int:
        return self.heldout.shape[1]

    @property
    def tokens(self) -> int:
        return len(self.training) * BATCH_TOKENS


Run = Callable[[Vectors, int, int, float, int], float]
"""Vectors, n_latents, k, learning rate and seed to the held-out fvu."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=262_144)
    options.add_argument("--subject", action="append", metavar="FOLDER:LAYER")
    options.add_argument("--text", help="files that the subject reads instead of the shipped text")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(os.cpu_count() or 1)
    started, rows = time.perf_counter(), []
    for subject in given.subject or ["shipped:3"]:
        vectors = _vectors(subject, given.text, 65_536 if given.short else given.tokens)
        cells = [(e * vectors.d_model, k) for e in EXPANSIONS for k in KS]
        for n_latents, k in cells[:1] if given.short else cells:
            rows.append(_cell(vectors, n_latents, k, seeds=1 if given.short else given.seeds))
            print(json.dumps(rows[-1]), flush=True)
    print(
        f"\n{vectors.tokens:,} tokens in batches of {BATCH_TOKENS}, torch {torch.__version__}, {platform.processor()}"
    )
    print(f"{table(rows)}\n")
    if ratios := [row["ratio"] for row in rows if row["ratio"]]:
        print(f"ours / best other: median {statistics.median(ratios):.3f}, highest {max(ratios):.3f}")
    print(f"{time.perf_counter() - started:.0f} s")


def _vectors(subject: str, text: str | None, tokens: int) -> Vectors:
    """Read once the vectors that all train on."""
    config = _config(8, 1, tokens=tokens, subject=subject, text=text)
    model = load(config.subject)
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(config.data, model.tokenizer, Path(folder))
        batches = [x.clone() for x in islice(stream(model, packed, config), tokens // BATCH_TOKENS)]
        return Vectors(batches, heldout(model, packed, config), sample(model, packed, config, 16_384))


def _config(
    n_latents: int, k: int, *, tokens: int, subject: str = "shipped:3", text: str | None = None,
    lr: float | str = "auto", seed: int = 0,
) -> JobConfig:  # fmt: skip
    name, _, layer = subject.rpartition(":")
    return parse(
        {
            "subject": {"layer": int(layer), **({} if name == "shipped" else {"model": name})},
            "data": {"source": text} if text else {},
            "sae": {"n_latents": n_latents, "k": k},
            "optimizer": {"lr": lr},
            "training": {
                "batch_tokens": BATCH_TOKENS, "shuffle_tokens": 64 * BATCH_TOKENS, "heldout_tokens": 16_384,
                "max_tokens": tokens, "seed": seed,
            },
        }
    )  # fmt: skip


def _cell(vectors: Vectors, n_latents: int, k: int, *, seeds: int) -> dict[str, Any]:
    """Return a row: every trainer's mean fvu and its rate."""
    auto = TrainState(_config(n_latents, k, tokens=vectors.tokens), vectors.d_model).optimizer.lr
    row: dict[str, Any] = {"d": vectors.d_model, "n": n_latents, "k": k}
    runs: dict[str, Run] = {"ours": _ours, **{name: partial(_other, make) for name, make in OTHERS.items()}}
    found: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            fvu, lr = _best_rate(lambda lr, run=run: run(vectors, n_latents, k, lr, 0), auto)  # type: ignore[misc]
        except ImportError:
            continue
        found[name] = [fvu, *(run(vectors, n_latents, k, lr, seed) for seed in range(1, seeds))]
        row |= {name: round(statistics.mean(found[name]), 4), f"{name} lr": float(f"{lr:.2g}")}
    others = [losses for name, losses in found.items() if name != "ours"]
    best = min(others, key=statistics.mean, default=None)
    ratios = [mine / other for mine, other in zip(found["ours"], best, strict=True)] if best else []
    row["ratio"] = round(statistics.mean(ratios), 3) if ratios else None
    row["±"] = round(statistics.stdev(ratios), 3) if len(ratios) > 1 else None
    return row


def _best_rate(run: Callable[[float], float], auto: float) -> tuple[float, float]:
    """Return the lowest fvu and its rate, which has a worse one on each side of it."""
    tried = {factor: run(auto * factor) for factor in FACTORS}
    while True:
        best = min(tried, key=lambda factor: tried[factor] if tried[factor] == tried[factor] else float("inf"))
        further = [f for f in (best / 2, best * 2) if f not in tried and 1 / FURTHEST <= f <= FURTHEST]
        if not further:
            return tried[best], auto * best
        tried |= {factor: run(auto * factor) for factor in further}


def _ours(vectors: Vectors, n_latents: int, k: int, lr: float, seed: int) -> float:
    config = _config(n_latents, k, tokens=vectors.tokens, lr=lr, seed=seed)
    state = TrainState.fresh(config, vectors.sample)
    for _ in train(state, vectors.training, config=config, heldout=vectors.heldout):
        pass
    return state.curve[-1].fvu


def _other(make: Callable[..., Peer], vectors: Vectors, n_latents: int, k: int, lr: float, seed: int) -> float:
    torch.manual_seed(seed)
    peer = make(vectors.training[0], n_latents, k, lr=lr)
    for x in vectors.training:
        peer.step(x)
    with torch.no_grad():
        held = vectors.heldout
        error = (held - peer.reconstruct(held)).square().sum(dtype=torch.float64)
        return float(error / (held - held.mean(0)).square().sum(dtype=torch.float64))


if __name__ == "__main__":
    main()
