"""What several layers cost: a step at equal vectors against one layer's, and capturing all layers against the last one.

Ratios of medians of one interleaved run; the batches of several layers are joined as a trainer joins them. Capture is
of one window through `ActivationSource.stream`, of a model of GPT-2's build with six blocks and random text; of
float32 vectors each layer is copied once out of the forward pass and once into the window.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from benchmarks.capture import CONTEXT, interleaved, random_text
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from worker.activations.model_source import ModelActivations
from worker.activations.source import joined
from worker.data.token_file import TokenFile
from worker.sae.train_state import TrainState, train_step
from worker.subject.model import Subject, load_at_first
from worker.subject.model_files import quiet

N_LAYERS, N_VECTORS, D_MODEL, N_LATENTS, K = 6, 3072, 512, 4096, 32
WINDOW = 8192


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="fewer rounds")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    rounds = 7 if chosen.short else 21
    with tempfile.TemporaryDirectory() as folder:
        found = step_seconds(rounds) | capture_seconds(Path(folder), rounds)
    ratios = {
        f"step, {N_LAYERS} layers / 1, {N_VECTORS} vectors": found["step of several"] / found["step of one"],
        f"capture, {N_LAYERS} layers / the last": found["capture of all"] / found["capture of the last"],
    }
    for name, ratio in ratios.items():
        print(f"{name:>40}{ratio:>8.3f}")
    print(json.dumps({"seconds": found, "ratios": ratios}))


def step_seconds(rounds: int) -> dict[str, float]:
    """Return the seconds of a step by one layer's vectors, and by as many of several layers."""

    def step(n_layers: int) -> Callable[[], object]:
        batch = N_VECTORS // n_layers
        training = {"batch_tokens": batch, "shuffle_tokens": batch, "max_tokens": 2**41}
        config = parse({"sae": {"n_latents": N_LATENTS, "k": K}, "training": training})
        vectors = torch.split(torch.nn.functional.normalize(x), batch)
        state = TrainState.fresh(config, torch.cat(vectors), n_layers=n_layers)
        return lambda: train_step(state, joined(vectors), config)

    x = torch.randn(N_VECTORS, D_MODEL, generator=torch.Generator().manual_seed(0))
    return interleaved({"step of one": step(1), "step of several": step(N_LAYERS)}, rounds=rounds)


def capture_seconds(folder: Path, rounds: int) -> dict[str, float]:
    """Return the seconds of a window at all layers, and at the last one."""

    def window(config: JobConfig) -> Callable[[], object]:
        stream = ModelActivations(subject, tokens, config).stream([config], start_tokens=0)
        return lambda: sum(1 for _ in islice(stream, WINDOW // config.training.batch_tokens))

    every, last = _config(folder, layers="all"), _config(folder, layer=N_LAYERS - 1)
    subject, tokens = _subject(folder, every)
    return interleaved({"capture of the last": window(last), "capture of all": window(every)}, rounds=rounds)


def _config(folder: Path, **place: object) -> JobConfig:
    training = {"batch_tokens": 2048, "shuffle_tokens": WINDOW, "heldout_tokens": CONTEXT}
    data = {"context_length": CONTEXT, "special_tokens": "train"}
    return parse({"subject": {"model": str(folder), **place}, "data": data, "training": training})


def _subject(folder: Path, config: JobConfig) -> tuple[Subject, TokenFile]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=8)).save_pretrained(folder)
    for path in SHIPPED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)
    subject = load_at_first([config.subject])
    return subject, random_text(folder / "text.u16", subject, n_contexts=4 * WINDOW // CONTEXT)


if __name__ == "__main__":
    main()
