"""What it changes to read the subject in bfloat16, as `subject.dtype: auto` does where the device is faster at it.

Two SAEs of one config are trained from the same start on the same text: on activations of the model in float32, and in
bfloat16. Printed: how far the held-out activations are apart (Σ‖a − b‖² / Σ‖a − mean‖², normalised as in training); the
fvu of each SAE on the held-out set of its own precision and of the other; the share of the latents that the SAE trained
in float32 selects of the vectors in bfloat16 and not of those in float32; and the tokens per second of capture, medians
of one interleaved run, by the wall and by CPU time. `--short`: fewer tokens. `--model`, `--layer`: another subject.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.interleaved_timing import interleaved
from orchestrator.config.job import SHIPPED_SUBJECT, JobConfig
from orchestrator.config.validation import parse
from worker.accelerator import choose, fast_dtype
from worker.activations.stream import heldout, sample, stream
from worker.data.token_file import TokenFile, pack
from worker.evaluation.reconstruction import measure_reconstruction
from worker.sae.model import SparseAutoencoder
from worker.sae.tiled_encode import select
from worker.sae.train_state import TrainState
from worker.subject.model import Subject, load
from worker.trainer.train import train

BATCH_TOKENS, SAMPLE = 512, 16_384


class Trained(NamedTuple):
    """An SAE, and the held-out vectors of the precision it was trained in."""

    model: SparseAutoencoder
    heldout: Tensor


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--model", default=SHIPPED_SUBJECT, help="model id or folder")
    options.add_argument("--layer", type=int, default=3)
    options.add_argument("--latents", type=int, default=1024)
    options.add_argument("--k", type=int, default=32)
    options.add_argument("--tokens", type=int, default=262_144)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--device", default="auto")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given, Path(folder)), indent=1))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train in both precisions and compare."""
    tokens, device = given.tokens // 8 if given.short else given.tokens, choose(given.device)
    configs = {dtype: _config(given, dtype, tokens) for dtype in ("float32", "bfloat16")}
    subjects = {dtype: load(config.subject, device) for dtype, config in configs.items()}
    text = pack(configs["float32"].data, subjects["float32"].tokenizer, folder)
    full, low = (_trained(subjects[dtype], text, config) for dtype, config in configs.items())
    wall, cpu = _capture_seconds(subjects, text, configs, given.rounds)
    spread = (full.heldout - full.heldout.mean(0)).square().sum(dtype=torch.float64)
    apart = (full.heldout - low.heldout).square().sum(dtype=torch.float64) / spread
    return {
        "model": given.model, "layer": given.layer, "d_model": full.heldout.shape[1], "n_latents": given.latents,
        "k": given.k, "tokens": tokens, "device": device, "threads": given.threads, "auto": fast_dtype(device[:4]),
        "activations apart": float(apart),
        "fvu, trained and measured in float32": _fvu(full.model, full.heldout),
        "fvu, trained in float32, measured in bfloat16": _fvu(full.model, low.heldout),
        "fvu, trained in bfloat16, measured in float32": _fvu(low.model, full.heldout),
        "fvu, trained and measured in bfloat16": _fvu(low.model, low.heldout),
        "latents selected otherwise": _selected_otherwise(full.model, full.heldout, low.heldout, k=given.k),
        "capture, float32, tokens/s": SAMPLE / wall["float32"],
        "capture, bfloat16, tokens/s": SAMPLE / wall["bfloat16"],
        "bfloat16 is faster, wall": wall["float32"] / wall["bfloat16"],
        "bfloat16 is faster, CPU time": cpu["float32"] / cpu["bfloat16"],
    }  # fmt: skip


def _config(given: argparse.Namespace, dtype: str, tokens: int) -> JobConfig:
    return parse(
        {
            "subject": {"model": given.model, "layer": given.layer, "dtype": dtype},
            "data": {"max_tokens": 2 * (tokens + SAMPLE)},
            "sae": {"n_latents": given.latents, "k": given.k},
            "training": {
                "batch_tokens": BATCH_TOKENS, "shuffle_tokens": 64 * BATCH_TOKENS, "heldout_tokens": SAMPLE,
                "max_tokens": tokens,
            },
        }
    )  # fmt: skip


def _trained(subject: Subject, text: TokenFile, config: JobConfig) -> Trained:
    held = heldout(subject, text, config)
    state = TrainState.fresh(config, sample(subject, text, config, SAMPLE))
    batches = islice(stream(subject, text, config), config.training.max_tokens // BATCH_TOKENS)
    for _ in train(state, batches, config=config, heldout=held):
        pass
    return Trained(state.best(), held)


def _fvu(model: SparseAutoencoder, held: Tensor) -> float:
    return measure_reconstruction(model, held).fvu


def _selected_otherwise(model: SparseAutoencoder, full: Tensor, low: Tensor, *, k: int) -> float:
    """Return the share of the latents selected of `low` that are not selected of `full`."""
    encoder = model.W_enc, model.b_enc
    ours, theirs = (select(x, model.b_pre, encoder, k=k).top_indices.sort(1).values for x in (full, low))
    at = torch.searchsorted(ours, theirs.contiguous()).clamp_max(k - 1)
    return float((ours.gather(1, at) != theirs).double().mean())


def _capture_seconds(
    subjects: dict[str, Subject], text: TokenFile, configs: dict[str, JobConfig], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a stream of SAMPLE tokens takes in each precision: by the wall, and in CPU time."""

    def capturing(batches: Iterator[Tensor], clock: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            began = clock()
            for _ in islice(batches, SAMPLE // BATCH_TOKENS):
                pass
            return clock() - began

        return run

    # Whole windows, so that each run captures as much as it takes.
    whole = {
        dtype: config.model_copy(update={"training": config.training.model_copy(update={"shuffle_tokens": SAMPLE})})
        for dtype, config in configs.items()
    }
    streams = {dtype: stream(subjects[dtype], text, config) for dtype, config in whole.items()}
    wall, cpu = (
        interleaved({dtype: capturing(batches, clock) for dtype, batches in streams.items()}, rounds=rounds)
        for clock in (time.perf_counter, time.process_time)
    )
    return wall, cpu


if __name__ == "__main__":
    main()
