"""The parts of `benchmarks.gpu_check`: each a process of its own.

`python -m benchmarks.gpu_parts NAME --device cuda --folder FOLDER [--rehearse]`. On a CPU (`--rehearse`) the same code
runs at tiny sizes, with plain torch in the place of the kernels. Each line of JSON that a part prints holds all it has
found so far: what fails later does not take it along.
"""

import argparse
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks import gpu_step
from benchmarks.gpu_step import Place, compiled_step, timed
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.train_state import TrainState

if TYPE_CHECKING:  # only one part needs a database
    from tests.small_world import World


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", choices=[*PARTS])
    options.add_argument("--device", default="cuda")
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--rehearse", action="store_true")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    place = Place(given.device, given.folder, given.rehearse)
    for found in PARTS[given.part](place):
        print(json.dumps(found), flush=True)


def capture(place: Place) -> Iterator[dict[str, Any]]:
    """Yield capture against the bare truncated forward pass, and eight SAEs on one stream against one by one."""
    from benchmarks import shared_stream as benchmark
    from benchmarks.capture import cut_off
    from orchestrator.estimates.memory import trainer_bytes
    from worker.activations.forward import tokens_per_pass
    from worker.activations.stream import sample, stream
    from worker.subject.model import load

    place.folder.mkdir(parents=True, exist_ok=True)
    window, batch = (4096, 2048) if place.is_rehearsal else (2**20, 8192)
    benchmark.gpt2_small(place.folder)
    large = ((16_384, 16), (16_384, 32), (32_768, 32), (32_768, 64)) * 2
    sizes, dtype = (((256, 8), (512, 8)), "float32") if place.is_rehearsal else (large, "bfloat16")
    configs = _configs(place, sizes, dtype=dtype, window=window, batch=batch)
    config = configs[0]
    subject = load(config.subject, place.device)
    tokens = benchmark.random_text(place.folder / "text.u16", n_contexts=4 * window // benchmark.CONTEXT)
    taken = sample(subject, tokens, config, 4096)
    trunk, pass_tokens = cut_off(subject, 6), tokens_per_pass(subject, benchmark.CONTEXT)
    ids = torch.randint(512, (pass_tokens // benchmark.CONTEXT, benchmark.CONTEXT), device=place.device)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(max(1, window // pass_tokens)):
                trunk(input_ids=ids, use_cache=False)

    batches = window // batch
    alone = stream(subject, tokens, config)
    steps, states = [], [TrainState.fresh(one, taken) for one in configs]
    for state, its_config in zip(states, configs, strict=True):
        state.untrained_fvu = 1.0
        steps.append(compiled_step(state, its_config, place, []))
    fixed = taken.repeat(-(-batch // len(taken)), 1)[:batch].contiguous()
    everyone = list(zip(steps, states, configs, strict=True))

    def take(some: Sequence[Any], batches: Iterable[Tensor]) -> int:
        n_batches = 0
        for x in batches:
            for step, state, its_config in some:
                step(state, x, its_config)
            n_batches += 1
        return n_batches

    window_of = partial(islice, alone, batches)
    works: dict[str, Callable[[], object]] = {
        "bare": bare, "capture": lambda: take([], window_of()), "train": lambda: take(everyone[:1], [fixed] * batches),
        "both": lambda: take(everyone[:1], window_of()), "together": lambda: take(everyone, window_of()),
        "apart": lambda: [take([one], window_of()) for one in everyone],
    }  # fmt: skip
    took = timed(works, place, repeats=1, rounds=3, warm_up=1)
    yield {
        "pass tokens": pass_tokens, "window": window, "seconds": took,
        "capture/bare": took["capture"] / took["bare"],
        "both/(larger of capture and train)": took["both"] / max(took["capture"], took["train"]),
        "together/apart": took["together"] / took["apart"],
        "capture tokens/s": window / took["capture"],
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if place.device == "cuda" else None,
        "predicted GB": trainer_bytes(configs, kind="cuda" if place.device == "cuda" else "cpu") / 1e9,
    }  # fmt: skip


def _configs(place: Place, sizes: Sequence[tuple[int, int]], *, dtype: str, window: int, batch: int) -> list[JobConfig]:
    from benchmarks.shared_stream import CONTEXT

    return [
        parse(
            {
                "subject": {"model": str(place.folder / "model"), "layer": 6, "dtype": dtype},
                "data": {"context_length": CONTEXT, "special_tokens": "train"},
                "sae": {"n_latents": n, "k": k},
                "training": {
                    "batch_tokens": batch, "shuffle_tokens": window, "heldout_tokens": 2048, "seed": seed,
                    "max_tokens": 2**40, "first_point_tokens": 2**40, "encode_dtype": dtype,
                },
            }
        )
        for seed, (n, k) in enumerate(sizes)
    ]  # fmt: skip


def job(place: Place) -> Iterator[dict[str, Any]]:
    """Yield how alike one job's curves are: on this device, killed and resumed there, and on the CPU."""
    from tests.small_world import make_subject, small_config, small_world

    place.folder.mkdir(parents=True, exist_ok=True)
    subject = make_subject(place.folder)
    config = small_config(subject, max_tokens=65_536)
    curves: dict[str, list[tuple[float, ...]]] = {}
    found: dict[str, Any] = {}
    for name, device in (("whole", place.device), ("killed", place.device), ("cpu", "cpu")):
        started = time.perf_counter()
        chosen = place.folder / "whole" / "compile"
        if name == "killed" and chosen.exists():  # the curve is the same, bit for bit, where the kernels are
            shutil.copytree(chosen, place.folder / "killed" / "compile", symlinks=True, dirs_exist_ok=True)
        with small_world(place.folder / name) as world:
            (job_id,) = world.enqueue(config)
            arguments = ("--device", device, "--threads", "1")
            worker = world.start(*arguments)
            if name == "killed":
                world.wait(partial(world.is_in_training, job_id, 1), 100)
                worker.kill()
                worker.wait()
                world.start(*arguments)
            world.wait(partial(_has_ended, world, job_id), 100)
            curves[name] = world.curve(job_id)
            found[name] = {
                "state": world.job(job_id).state, "attempts": world.attempts(job_id),
                "facts": world.last_attempt(job_id).facts, "seconds": time.perf_counter() - started,
            }  # fmt: skip
        yield found
    differing = (pair for pair in zip(curves["killed"], curves["whole"], strict=False) if pair[0] != pair[1])
    gaps = [abs(ours[1] - cpu[1]) / cpu[1] for ours, cpu in zip(curves["whole"], curves["cpu"], strict=True)]
    yield found | {
        "killed = whole": curves["killed"] == curves["whole"], "first that differs": next(differing, None),
        "points": len(gaps), "largest relative gap of a fvu to the CPU's": max(gaps),
    }  # fmt: skip


def _has_ended(world: "World", job_id: int) -> bool:
    return world.job(job_id).state in ("succeeded", "failed")


PARTS: dict[str, Callable[[Place], Iterator[dict[str, Any]]]] = {
    "ceilings": gpu_step.ceilings,
    **{f"warm{i}": lambda place, i=i: gpu_step.warm(place, i) for i in range(len(gpu_step.SHAPES))},  # type: ignore[misc]
    **{f"step{i}": lambda place, i=i: gpu_step.step(place, i) for i in range(len(gpu_step.SHAPES))},  # type: ignore[misc]
    "peers": gpu_step.peers,
    "decoder": gpu_step.decoder,
    "float8": gpu_step.float8,
    "capture": capture,
    "job": job,
}

if __name__ == "__main__":
    main()
