"""Time of one training step against its floor, the bare encoder product, in one interleaved run.

Floor: only the encoder's product has to be dense, 2·B·D·n operations; the rest of a step is O(B·k·D) and one pass
over the parameters. A trainer that is dense throughout needs 12·B·D·n, and 18·B·D·n with AuxK.
Prints a table and a line of JSON. `--full` adds the shape of the paper's GPT-2 small runs (minutes on two cores).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from orchestrator.config import JobConfig, parse
from worker.sae.trainee import Trainee
from worker.training import train


class Shape(NamedTuple):
    d_model: int
    n_latents: int
    k: int
    batch_tokens: int


SHORT = (Shape(128, 512, 8, 256), Shape(128, 1024, 16, 1024), Shape(256, 4096, 32, 1024))
FULL = (Shape(768, 16_384, 32, 2048),)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true")
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args()
    rows = [measure(shape, rounds=chosen.rounds) for shape in (SHORT + FULL if chosen.full else SHORT)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {chosen.rounds} rounds\n")
    print(f"{'D':>5} {'n':>6} {'k':>3} {'B':>5} {'product ms':>11} {'step ms':>8} {'ratio':>6} {'tokens/s':>9}")
    for row in rows:
        print(
            f"{row['d_model']:>5} {row['n_latents']:>6} {row['k']:>3} {row['batch_tokens']:>5} "
            f"{row['product_ms']:>11.2f} {row['step_ms']:>8.2f} {row['ratio']:>6.2f} {row['tokens_per_second']:>9,.0f}"
        )
    print(json.dumps(rows))


def measure(shape: Shape, *, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch_tokens, shape.d_model, generator=generator)
    x = x / x.norm(dim=1, keepdim=True)
    config = _config(shape)
    trainee = Trainee.fresh(config, x)
    steps = train(trainee, iter(lambda: x, None), config=config, heldout=x[:64])
    W_enc = trainee.model.W_enc.detach().clone()
    times: dict[str, list[float]] = {"product": [], "step": []}
    for _ in range(rounds + 2):
        times["product"].append(_seconds(lambda: x @ W_enc.T))
        times["step"].append(_seconds(lambda: next(steps)))
    product, step = (statistics.median(times[name][2:]) for name in ("product", "step"))  # the first two warm up
    return {
        **shape._asdict(),
        "product_ms": product * 1e3,
        "step_ms": step * 1e3,
        "ratio": step / product,
        "tokens_per_second": shape.batch_tokens / step,
    }


def _config(shape: Shape) -> JobConfig:
    training = {
        "batch_tokens": shape.batch_tokens,
        "shuffle_tokens": shape.batch_tokens,
        "first_point_tokens": 2**40,  # no evaluation among the steps that are timed
        "max_tokens": 2**41,
    }
    return parse({"sae": {"n_latents": shape.n_latents, "k": shape.k}, "training": training})


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
