"""How the time per token grows with n_latents, d_model, k, the batch, jobs of one stream and workers of one machine.

Floor: the product's 2·D·n operations per token, so time per token ∝ n · D and independent of k and B; what is not, is
the O(k·D) rest, and the 36 bytes per parameter of the optimiser, shared by B tokens. Of jobs on one stream the floor
is the time of their steps: what capture costs is shared (`benchmarks.shared_stream`, by token and SAE). Workers of one
machine share its cores: w processes with a w-th of the threads each train w SAEs in the time of one at best. Threads
that wait sleep, as a trainer's do. Prints a table, the exponent of each series (the slope of ln time per token over ln
size, with its standard error) and a line of JSON; `--picture FILE` draws them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch

from benchmarks import shared_stream
from benchmarks.interleaved_timing import table
from benchmarks.step import Case, Shape, measure
from orchestrator.scaling.plots.canvas import Sheet, logarithmic, pen, styled
from worker.supervisor.trainer_process import SLEEPING_THREADS

MIDDLE = Shape(256, 4096, 32, 1024)
SERIES = {
    "n_latents": (1024, 2048, 4096, 8192, 16_384),
    "d_model": (64, 128, 256, 512, 1024),
    "k": (4, 8, 16, 32, 64, 128),
    "batch_tokens": (128, 256, 512, 1024, 2048, 4096),
}
JOBS = (1, 2, 4, 8)
_WINDOW = 4096


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="the ends of each series alone")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--picture", type=Path, help="an .svg or .png file")
    options.add_argument("--one-worker", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if not SLEEPING_THREADS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | SLEEPING_THREADS)
    if chosen.one_worker:
        torch.set_num_threads(chosen.one_worker)
        print(measure(Case(MIDDLE), rounds=chosen.rounds, beside=False)["tokens/s"])
        return
    rows = [*_steps(chosen.rounds, is_short=chosen.short), *_jobs(chosen.rounds, is_short=chosen.short)]
    rows += _workers(chosen.rounds)
    found = [_exponent(name, [row for row in rows if row["varied"] == name]) for name in (*SERIES, "jobs", "workers")]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"medians of {chosen.rounds} rounds\n")  # fmt: skip
    print(f"{table(rows)}\n\n{table(found)}\n{json.dumps({'rows': rows, 'exponents': found})}")
    if chosen.picture:
        _draw(rows, found, chosen.picture)


def _steps(rounds: int, *, is_short: bool) -> list[dict[str, Any]]:
    """Return rows of one step, one size varied at a time."""
    rows: list[dict[str, Any]] = []
    for name, values in SERIES.items():
        for value in (values[0], values[-1]) if is_short else values:
            found = measure(Case(MIDDLE._replace(**{name: value})), rounds=rounds, beside=False)
            rows.append(_row(name, value, 1e6 / found["tokens/s"], found["step/product"]))
    return rows


def _jobs(rounds: int, *, is_short: bool) -> list[dict[str, Any]]:
    """Return rows of SAEs that share a stream, the time of a token of text for each of them."""
    rows = []
    for n_jobs in (JOBS[0], JOBS[-1]) if is_short else JOBS:
        with tempfile.TemporaryDirectory() as folder:
            seconds, _ = shared_stream.measure(
                Path(folder), n_jobs=n_jobs, rounds=1 if is_short else rounds, window_tokens=_WINDOW, only=("together",)
            )
        rows.append(_row("jobs", n_jobs, 1e6 * seconds["together"] / _WINDOW / n_jobs, None))
    return rows


def _workers(rounds: int) -> list[dict[str, Any]]:
    """Return rows of processes that train an SAE each, at once, with their part of the threads."""
    cores, rows = torch.get_num_threads(), []
    for n_workers in (n for n in (1, 2, 4, 8) if n <= cores):
        threads = str(max(1, cores // n_workers))
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", "--one-worker", threads]
        children = [
            subprocess.Popen([*command, "--rounds", str(4 * rounds)], stdout=subprocess.PIPE, text=True)
            for _ in range(n_workers)
        ]
        speeds = [float(child.communicate()[0].split()[-1]) for child in children]
        rows.append(_row("workers", n_workers, 1e6 / sum(speeds), None))
    return rows


def _row(name: str, value: int, microseconds: float, of_product: float | None) -> dict[str, Any]:
    return {"varied": name, "value": value, "µs/token": microseconds, "step/product": of_product}


def _exponent(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the slope of ln time per token over ln size; its standard error from three points on."""
    if len(rows) < 2:
        return {"varied": name, "exponent": None, "±": None}
    x, y = (np.log([row[key] for row in rows]) for key in ("value", "µs/token"))
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    error = float(np.sqrt((rest * rest).sum() / (len(rows) - 2) / (x * x).sum())) if len(rows) > 2 else None
    return {"varied": name, "exponent": round(slope, 3), "±": None if error is None else round(error, 3)}


def _draw(rows: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], path: Path) -> None:
    with styled("scale"):
        sheet = Sheet("scale", panels=len(found))
        for at, one in enumerate(found):
            points = [(row["value"], row["µs/token"]) for row in rows if row["varied"] == one["varied"]]
            axes, line = sheet.panels[at], pen(0)
            axes.plot(*zip(*points, strict=True), color=line.colour, marker=line.marker)
            told = "" if one["exponent"] is None else f", exponent {one['exponent']}"
            sheet.title(f"{one['varied']}{told}", panel=at)
            logarithmic(axes, "x", one["varied"], values=[x for x, _ in points])
            logarithmic(axes, "y", "µs per token and SAE", values=[y for _, y in points], pad=0.15)
        sheet.figure.savefig(path)


if __name__ == "__main__":
    main()
