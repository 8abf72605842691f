"""How the time per token grows with n_latents, d_model, k and the batch, one at a time from a middle shape.

Floor: the product's 2·D·n operations per token, so time per token ∝ n · D and independent of k and B; what is not, is
the O(k·D) rest, and the 36 bytes per parameter of the optimiser, shared by B tokens. Prints a table and a line of JSON.
"""

import argparse
import json
import os
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from benchmarks.interleaved_timing import table
from benchmarks.step import Case, Shape, measure

MIDDLE = Shape(256, 4096, 32, 1024)
SERIES = {
    "n_latents": (1024, 2048, 4096, 8192, 16_384),
    "d_model": (64, 128, 256, 512, 1024),
    "k": (4, 8, 16, 32, 64, 128),
    "batch_tokens": (128, 256, 512, 1024, 2048, 4096),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="the ends of each series alone")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    for name, values in SERIES.items():
        for value in (values[0], values[-1]) if chosen.short else values:
            found = measure(Case(MIDDLE._replace(**{name: value})), rounds=chosen.rounds, beside=False)
            kept = {key: found[key] for key in ("D", "n", "k", "B", "product ms", "step ms", "step/product")}
            rows.append({"varied": name, **kept, "µs/token": 1e6 / found["tokens/s"]})
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {chosen.rounds} rounds\n")
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
