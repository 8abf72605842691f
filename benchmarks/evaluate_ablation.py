"""Ablation sparsity against its floor, in one interleaved run: pairs per second, medians.

bare: the rows with something taken out, the same number and length, through the blocks above the hook, the final norm
and the head at the T tokens that are compared; no hooks, nothing measured.  ablation: the family itself: it draws and
encodes, runs one clean row for 16, and subtracts, finds medians and norms.  The target is a ratio of 0.8.
Prints a table. `--full` adds a model of GPT-2 small's size, random weights (minutes on two cores).
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.capture import gpt2_small
from benchmarks.interleaved_timing import interleaved, table
from orchestrator.config.evaluation.ablation import AblationOptions
from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from worker.activations.heldout_split import Contexts
from worker.data.token_file import pack
from worker.evaluation.ablation.family import AblationRun, choose_latents
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.sae.native.kernels import use
from worker.subject.model import load
from worker.subject.model_files import quiet

PAIRS, AFFECTED, K = 128, 16, 32


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="also a model of GPT-2 small's size")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder) / "kernels")  # as in an evaluation's process
        rows = [measure("shipped", str(SHIPPED_FOLDER), 3, folder=Path(folder), rounds=chosen.rounds)]
        if chosen.full:
            small = gpt2_small(Path(folder) / "gpt2-small")
            rows.append(measure("GPT-2 small", small, 8, folder=Path(folder), rounds=min(chosen.rounds, 5)))
    print(f"{chosen.threads} threads, torch {torch.__version__}, {PAIRS} pairs, T = {AFFECTED}\n")
    print(table(rows))


@torch.no_grad()
def measure(name: str, model: str, layer: int, *, folder: Path, rounds: int) -> dict[str, object]:
    context = open_place(model, layer, folder / name)
    run = AblationRun(context, AblationOptions(pairs=PAIRS, affected_tokens=AFFECTED))
    choose = partial(choose_latents, random_sae(context.vectors.shape[1]), "one position", context=context)
    lengths = [window.length for window in run.windows]
    bare = bare_forward(context, layer, lengths)
    seconds = interleaved({"bare": bare, "ablation": lambda: run.measure(choose, "")}, rounds=rounds)
    n_pairs = len(run.measure(choose, "").share)
    return {
        "model": name,
        "blocks above": f"{context.model()[0].n_layers - layer - 1}",
        "vocabulary": context.model()[0].vocabulary,
        "tokens a pair": sum(lengths) / len(lengths),
        "bare pairs/s": n_pairs / seconds["bare"],
        "pairs/s": n_pairs / seconds["ablation"],
        "ratio": seconds["bare"] / seconds["ablation"],
    }


def bare_forward(context: EvaluationContext, layer: int, lengths: list[int]) -> Callable[[], None]:
    model: Any = context.model()[0].model
    rows = PAIRS // len(lengths)

    def run() -> None:
        for length in lengths:
            hidden: Tensor = context.heldout_activations[0, :length].expand(rows, -1, -1).clone()
            for block in model.transformer.h[layer + 1 :]:
                found = block(hidden)
                hidden = found[0] if isinstance(found, tuple) else found
            model.lm_head(model.transformer.ln_f(hidden)[:, -AFFECTED:])

    return run


def open_place(model: str, layer: int, folder: Path) -> EvaluationContext:
    job = parse({
        "subject": {"model": model, "layer": layer},
        "data": {"source": "python:stdlib", "max_tokens": 100_000},
        "training": {"heldout_tokens": 8192},
    })  # fmt: skip
    subject = load(job.subject)
    tokens = pack(job.data, subject.tokenizer, folder)
    config = EvaluationConfig(
        plan=EvaluationPlan(), sae=EvaluatedSaeRef(id=1), subject=job.subject, data=job.data, heldout_tokens=8192
    )
    text = HeldoutText(tokens, Contexts.of(tokens, job), job.data.source)
    store = SharedStore(folder / "store")
    return EvaluationContext(config, torch.device("cpu"), store, lambda phase, share: None, subject, text)


def random_sae(d_model: int) -> InferenceSae:
    n_latents = 8 * d_model
    rows = torch.nn.functional.normalize(torch.randn(n_latents, d_model), dim=1)
    facts = SaeFacts(
        selection="topk",
        d_model=d_model,
        n_latents=n_latents,
        normalize="unit",
        subtracts_bias=True,
        dtype="float32",
        k=K,
    )
    tensors = {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(n_latents), "b_dec": torch.zeros(d_model)}
    return InferenceSae(facts, tensors)


if __name__ == "__main__":
    main()
