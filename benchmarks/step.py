"""Time of one training step against its floor, the bare encoder product, in one interleaved run: medians.

Floor: only the encoder's product has to be dense, 2·B·D·n operations (`product`: into memory that is there, in the
step's precision); the rest is O(B·k·D), and one pass over the parameters that reads W, g, m, v, average and writes
W, m, v, average, 36 bytes per parameter. A trainer that is dense throughout needs 6 products, 9 with AuxK.
`step`: ours, with the kernels in C where there is a compiler; a share of the latents dead, so with AuxK. `plain`: our
reference under autograd. Peers are timed beside it, in a process of their own, where they can be imported: pip install
eai-sparsify dictionary-learning sae-lens.
Prints a table and a line of JSON. `--short` leaves out the plain step, the peers and the middle sizes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in the trainer's process: huge pages for large tensors

import torch

from benchmarks.interleaved_timing import interleaved, table
from benchmarks.peers import Peers
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.native.kernels import use
from worker.sae.native.whole_step import step_in_c
from worker.sae.tiled_encode import select
from worker.sae.train_state import Step, TrainState


class Shape(NamedTuple):
    d_model: int
    n_latents: int
    k: int
    batch_tokens: int


class Case(NamedTuple):
    shape: Shape
    dtype: str = "float32"
    dead_share: float = 0.0
    with_peers: bool = False


GPT2_SMALL = Shape(768, 16_384, 32, 2048)
SMALL, MIDDLE = Shape(128, 512, 8, 256), (Shape(128, 1024, 16, 1024), Shape(256, 4096, 32, 1024))
HEADLINES = (
    Case(GPT2_SMALL, with_peers=True), Case(GPT2_SMALL, dead_share=0.1), Case(GPT2_SMALL, dtype="bfloat16"),
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args()
    folder = tempfile.TemporaryDirectory()
    failed = use(Path(folder.name))
    print(f"kernels in C: {failed or 'in use'}")
    cases = (Case(SMALL), *(() if chosen.short else map(Case, MIDDLE)), *HEADLINES)
    rows = [measure(case, rounds=chosen.rounds, beside=not chosen.short) for case in cases]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {chosen.rounds} rounds\n")
    print(table(rows))
    print(json.dumps(rows))


def measure(case: Case, *, rounds: int, beside: bool) -> dict[str, Any]:
    """Return a row: what a step takes, as a multiple of the bare product and against each peer."""
    shape, x = case.shape, random_batch(case.shape)
    works: dict[str, Callable[[], object]] = {"product": _product(case, x), "step": step_of(case, x)}
    names = ("sparsify", "dictionary_learning", "SAELens")
    if beside:
        works["plain"] = step_of(case, x, _plain)
    peers = Peers(**shape._asdict()) if beside and case.with_peers else None
    if peers:
        works |= {name: partial(peers.step, name) for name in peers.names}
    seconds = interleaved(works, rounds=rounds)
    if peers:
        peers.close()
    step = seconds["step"]
    times = {f"x {name}": seconds[name] / step if name in seconds else None for name in names}
    plain = seconds["plain"] / seconds["product"] if beside else None
    return {
        "D": shape.d_model, "n": shape.n_latents, "k": shape.k, "B": shape.batch_tokens, "encode": case.dtype,
        "dead": case.dead_share, "product ms": seconds["product"] * 1e3, "step ms": step * 1e3,
        "step/product": step / seconds["product"], "plain/product": plain, "tokens/s": shape.batch_tokens / step,
        **times, "latents off": _latents_off(case, x),
    }  # fmt: skip


def _latents_off(case: Case, x: torch.Tensor) -> float | None:
    """Return the share of the selected latents that full precision would not have selected (target: below 1e-3)."""
    if case.dtype == "float32":
        return None
    model = TrainState.fresh(_config(case), x).model
    encoder, k = (model.W_enc, model.b_enc), case.shape.k
    exact = select(x, model.b_pre, encoder, k=k).top_indices.sort(1).values
    rounded = select(x, model.b_pre, encoder, k=k, dtype=model.product_dtype).top_indices
    at = torch.searchsorted(exact, rounded).clamp_max(k - 1)
    return float((exact.gather(1, at) != rounded).double().mean())


def random_batch(shape: Shape) -> torch.Tensor:
    x = torch.randn(shape.batch_tokens, shape.d_model, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x)


def _product(case: Case, x: torch.Tensor) -> Callable[[], object]:
    dtype = getattr(torch, case.dtype)
    rows, W_enc = x.to(dtype), torch.randn(case.shape.n_latents, case.shape.d_model).to(dtype)
    out = torch.empty(len(rows), len(W_enc), dtype=dtype)
    return lambda: torch.mm(rows, W_enc.T, out=out)


def step_of(case: Case, x: torch.Tensor, step: Step | None = None) -> Callable[[], object]:
    """Return what takes a step and tells its seconds: by default as a trainer here does."""
    config = _config(case)
    state = TrainState.fresh(config, x)
    step = step or step_in_c(state, config)
    n_dead = int(case.dead_share * case.shape.n_latents)
    asleep = state.model.W_enc.detach()[:n_dead] * 1e-3  # too weak to be selected, half of them positive

    def run() -> float:
        if n_dead:
            state.tokens_seen = state.dead_after_tokens
            state.tokens_since_fired[:n_dead] = 2 * state.dead_after_tokens
            with torch.no_grad():
                state.model.W_enc[:n_dead] = asleep
                state.model.b_enc[:n_dead] = 0.0
        started = time.perf_counter()  # putting latents to sleep again is not the step's
        step(state, x, config)
        seconds = time.perf_counter() - started
        assert (state.aux_tokens > 0) == (n_dead > 0), "AuxK runs where latents are dead"
        return seconds

    return run


def _plain(state: TrainState, batch: torch.Tensor, config: JobConfig) -> None:
    """Take the step under autograd: `step.take`, but for the way to the gradients."""
    _, _, is_active = state.by_autograd(batch, config)
    state.optimizer.step()
    state.tokens_seen += len(batch)
    state.aux_tokens += len(batch) * is_active


def _config(case: Case) -> JobConfig:
    batch = case.shape.batch_tokens
    training = {"batch_tokens": batch, "shuffle_tokens": batch, "max_tokens": 2**41, "encode_dtype": case.dtype}
    return parse({"sae": {"n_latents": case.shape.n_latents, "k": case.shape.k}, "training": training})


if __name__ == "__main__":
    main()
