"""Probes of all latents of an SAE: 10 tasks of 5,000 examples, 16,384 latents of 768 dimensions, drawn at random.

Floor: the encoder's product of every task's examples, nothing else, in the same process one after the other. The target
is 60 s on two cores. Wall time, CPU time of the process, and their ratios; a line of JSON. `--short`: 2 tasks, and the
time of ten is five times as long.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from worker.evaluation.probes.features import Part, TaskSet
from worker.evaluation.probes.fitting import Projection, train_losses

TASKS, EXAMPLES, LATENTS, D_MODEL = 10, 5_000, 16_384, 768
TARGET_SECONDS = 60.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    n_tasks = 2 if options.parse_args().short else TASKS
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(LATENTS, D_MODEL, generator=generator) / D_MODEL**0.5
    # Latents of noise would be fitted in two steps: activations are skewed, and a label shifts some directions.
    shift = torch.randn(D_MODEL, generator=generator)
    sets = [_task(generator, shift) for _ in range(n_tasks)]
    projection = Projection(LATENTS, lambda x, which: x @ encoder[which].T)
    floor = _timed(lambda: [tasks.train.vectors @ encoder.T for tasks in sets])
    probes = _timed(lambda: [train_losses(tasks, projection, 1e-6, lambda: None) for tasks in sets])
    scale = TASKS / n_tasks
    found = {
        "threads": torch.get_num_threads(),
        "floor s": floor[0] * scale, "floor CPU s": floor[1] * scale,
        "probes s": probes[0] * scale, "probes CPU s": probes[1] * scale,
        "probes / floor": probes[0] / floor[0], "CPU, probes / floor": probes[1] / floor[1],
        "target s": TARGET_SECONDS,
    }  # fmt: skip
    from benchmarks.interleaved_timing import table

    print(table([found]))
    print(json.dumps(found))


def _task(generator: torch.Generator, shift: Tensor) -> TaskSet:
    labels = torch.rand(1, EXAMPLES, generator=generator) < 0.5
    x = torch.randn(EXAMPLES, D_MODEL, generator=generator)
    x = (x + x.square() * 0.3 + labels[0, :, None] * shift).contiguous()
    part = Part(x, None, labels, torch.arange(EXAMPLES))
    return TaskSet(("made",), {}, "last", part, part, {})


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


if __name__ == "__main__":
    main()
