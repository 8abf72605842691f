"""What a small step takes beside one busy process, against what it takes alone: medians of one interleaved run.

Each way of running is a process of its own, that takes steps when it is told to, with the kernels in C: `trainer`, with
the threads and the wait policy that a trainer here gets, and one thread for a small step; `spinning`, as torch does it
by itself; `one thread`. In every round each takes steps for some time alone, and then beside a process that is busy all
the time, and stopped meanwhile. Milliseconds of wall time are means over that time, CPU ms what the process used of all
cores. `/ alone` divides by the same way of running alone, `/ best` by the best of them alone. Prints a table and a line
of JSON. `--short`: two rounds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.interleaved_timing import table
from benchmarks.step import MIDDLE, SMALL, Case, random_batch, step_of
from orchestrator.cores import usable_cores
from orchestrator.estimates.memory import SMALL_STEP_FLOPS
from worker.sae.native.kernels import use
from worker.supervisor.trainer_process import SLEEPING_THREADS

SHAPES = (SMALL, *MIDDLE)
WARM_UP = 5
SETTLE_SECONDS = 0.1
"""Until threads that spin have given up, and a process that was stopped sleeps."""


class Took(NamedTuple):
    """What a step took on average, in ms."""

    wall: float
    cpu: float


class Stepper:
    """A process that takes steps when it is told to."""

    def __init__(self, way: str, *, threads: int, variables: dict[str, str]) -> None:
        """Start it; it says when every shape is warm."""
        known = {name: value for name, value in os.environ.items() if name not in SLEEPING_THREADS}
        counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.company", "--stepper", way], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=known | counts | variables,
        )  # fmt: skip
        self._answer()

    def take(self, shape: int, seconds: float) -> Took:
        """Take steps of a shape for some time."""
        assert self._child.stdin
        self._child.stdin.write(f"{shape} {seconds}\n")
        self._child.stdin.flush()
        return Took(*json.loads(self._answer()))

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.communicate()

    def _answer(self) -> str:
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that takes steps ended with status {self._child.wait()}")
        return line


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=0.5, help="of steps, for each figure and round")
    options.add_argument("--threads", type=int, default=usable_cores())
    options.add_argument("--stepper", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.stepper:
        take_steps(given.stepper)
        return
    ways: dict[str, dict[str, Any]] = {
        "trainer": {"threads": given.threads, "variables": SLEEPING_THREADS},
        "spinning": {"threads": given.threads, "variables": {}},
        "one thread": {"threads": 1, "variables": SLEEPING_THREADS},
    }
    steppers: dict[str, Stepper] = {}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy.send_signal(signal.SIGSTOP)
        steppers |= {name: Stepper(name, **how) for name, how in ways.items()}
        rows = measure(steppers, busy, rounds=2 if given.short else given.rounds, seconds=given.seconds)
    finally:
        busy.kill()
        busy.wait()
        for one in steppers.values():
            one.close()
    print(f"{given.threads} threads, {usable_cores()} cores\n\n{table(rows)}\n{json.dumps(rows)}")


def measure(
    steppers: dict[str, Stepper], busy: "subprocess.Popen[bytes]", *, rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Return a row for each shape and way of running."""
    found: dict[tuple[int, str, bool], list[Took]] = {}
    for _ in range(rounds):
        for shape in range(len(SHAPES)):
            for name, one in steppers.items():
                for in_company in (False, True):
                    busy.send_signal(signal.SIGCONT if in_company else signal.SIGSTOP)
                    time.sleep(SETTLE_SECONDS)
                    found.setdefault((shape, name, in_company), []).append(one.take(shape, seconds))
                busy.send_signal(signal.SIGSTOP)
    wall = {key: median(one.wall for one in took) for key, took in found.items()}
    cpu = {key: median(one.cpu for one in took) for key, took in found.items()}
    return [_row(shape, name, wall, cpu) for shape in range(len(SHAPES)) for name in steppers]


def _row(
    shape: int, name: str, wall: dict[tuple[int, str, bool], float], cpu: dict[tuple[int, str, bool], float]
) -> dict[str, object]:
    sizes, alone, beside = SHAPES[shape], wall[shape, name, False], wall[shape, name, True]
    best = min(value for (at, _, in_company), value in wall.items() if at == shape and not in_company)
    return {
        "D": sizes.d_model, "n": sizes.n_latents, "k": sizes.k, "B": sizes.batch_tokens, "way": name,
        "alone ms": alone, "beside ms": beside, "/ alone": beside / alone, "alone / best": alone / best,
        "beside / best": beside / best,
        "alone CPU ms": cpu[shape, name, False], "beside CPU ms": cpu[shape, name, True],
    }  # fmt: skip


def take_steps(way: str) -> None:
    """Take steps as the lines of standard input say: the number of a shape, and for how many seconds."""
    with tempfile.TemporaryDirectory() as folder:  # what is loaded from there stays loaded
        use(Path(folder))
    steps = [step_of(Case(shape), random_batch(shape)) for shape in SHAPES]
    flops = [2 * shape.batch_tokens * shape.n_latents * shape.d_model for shape in SHAPES]
    every = torch.get_num_threads()
    threads = [1 if way == "trainer" and each <= SMALL_STEP_FLOPS else every for each in flops]
    for number, step in zip(threads, steps, strict=True):
        torch.set_num_threads(number)
        for _ in range(WARM_UP):
            step()
    print("ready", flush=True)
    for line in sys.stdin:
        shape, seconds = line.split()
        torch.set_num_threads(threads[int(shape)])
        began, used, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < float(seconds):
            steps[int(shape)]()
            n += 1
        took = Took((time.perf_counter() - began) / n, (time.process_time() - used) / n)
        print(json.dumps([1e3 * value for value in took]), flush=True)


if __name__ == "__main__":
    main()
