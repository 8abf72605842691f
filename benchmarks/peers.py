"""One training step of other trainers, as their own training loops take it; those that cannot be imported are left out.

Each gets the same batches and sizes, Adam at a constant rate, and its own start, decoder upkeep and bookkeeping of dead
latents. None has a dead latent here, so none pays for AuxK. For timing they run in a process of their own, with the
environment they are shipped for.
"""

import importlib
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MARK = "answer:"


class Peer(NamedTuple):
    """Another trainer, made for the shape of one batch."""

    step: Callable[[Tensor], object]
    """Train on a batch, (batch_tokens, d_model)."""
    reconstruct: Callable[[Tensor], Tensor]
    """Return what the SAE that it would save makes of vectors; no more steps after it."""


class Peers:
    """The process that the peers run in: it takes one step when it is told a name."""

    def __init__(self, *, d_model: int, n_latents: int, k: int, batch_tokens: int) -> None:
        """Start it; `names` says who is there."""
        sizes = [str(size) for size in (d_model, n_latents, k, batch_tokens, torch.get_num_threads())]
        environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", *sizes],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.names = self._line().split()

    def step(self, name: str) -> float:
        """Let a peer take a step; return its seconds."""
        assert self._child.stdin is not None
        print(name, file=self._child.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()

    def _line(self) -> str:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(_MARK):  # a peer may print what it likes
                return line.removeprefix(_MARK).strip()
        raise EOFError("the peers' process ended")


def main() -> None:
    """Answer each name on standard input with the seconds of a step."""
    d_model, n_latents, k, batch_tokens, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    x = torch.randn(batch_tokens, d_model, generator=torch.Generator().manual_seed(0))
    found = steps(torch.nn.functional.normalize(x), n_latents=n_latents, k=k)
    print(_MARK, *found, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found[line.strip()]()
        print(_MARK, time.perf_counter() - started, flush=True)


def steps(x: Tensor, *, n_latents: int, k: int) -> dict[str, Callable[[], object]]:
    """Return a step on x of each peer that is installed, by its name."""
    found: dict[str, Callable[[], object]] = {}
    for name, make in PEERS.items():
        with suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = partial(make(x, n_latents, k).step, x)
    return found


def sparsify(x: Tensor, n_latents: int, k: int, *, lr: float = 1e-4, is_signum: bool = False) -> Peer:
    """Return sparsify on the device of x: on a GPU with its Triton decoder, which the CPU does not have.

    `is_signum`: with the optimiser it is shipped with, sign descent averaged without a schedule, instead of Adam.
    """
    if not x.is_cuda:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    module: Any = importlib.import_module("sparsify")
    sae = module.SparseCoder(x.shape[1], module.SparseCoderConfig(num_latents=n_latents, k=k), device=x.device)
    sae.b_dec.data = x.mean(0)
    optimizer: Any
    if is_signum:
        wrapper: Any = importlib.import_module("schedulefree").ScheduleFreeWrapper
        optimizer = wrapper(
            importlib.import_module("sparsify.sign_sgd").SignSGD([{"params": sae.parameters(), "lr": lr}]),
            momentum=0.95,
        )
        optimizer.train()
    else:
        optimizer = torch.optim.Adam(sae.parameters(), lr=lr, fused=x.is_cuda)
    silent = torch.zeros(n_latents, dtype=torch.long, device=x.device)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, total_variance=(x - x.mean(0)).pow(2).sum())
        out.fvu.backward()
        fired = torch.zeros(n_latents, dtype=torch.bool, device=x.device)
        fired[out.latent_indices.flatten()] = True
        silent.add_(len(x))[fired] = 0
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    def reconstruct(x: Tensor) -> Tensor:
        if is_signum:
            optimizer.eval()
        found: Tensor = sae(x).sae_out
        return found

    return Peer(step, reconstruct)


def _dictionary_learning(x: Tensor, n_latents: int, k: int, *, lr: float | None = None) -> Peer:
    module: Any = importlib.import_module("dictionary_learning.trainers.top_k")
    trainer = module.TopKTrainer(
        steps=10**6, activation_dim=x.shape[1], dict_size=n_latents, k=k, layer=0, lm_name="none", device="cpu", seed=0,
        lr=lr, warmup_steps=0,
    )  # fmt: skip
    taken = itertools.count()
    return Peer(lambda x: trainer.update(next(taken), x), lambda x: trainer.ae(x))


def _sae_lens(x: Tensor, n_latents: int, k: int, *, lr: float = 1e-4) -> Peer:
    module: Any = importlib.import_module("sae_lens.saes.topk_sae")
    parts: Any = importlib.import_module("sae_lens.saes.sae")
    sae = module.TopKTrainingSAE(module.TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=n_latents, k=k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    silent, frequency = torch.zeros(n_latents), torch.zeros(n_latents)
    dead, taken = torch.zeros(n_latents, dtype=torch.bool), itertools.count()

    def step(x: Tensor) -> None:
        given = parts.TrainStepInput(
            sae_in=x, dead_neuron_mask=dead, coefficients={}, n_training_steps=next(taken), is_logging_step=False
        )
        out = sae.training_forward_pass(step_input=given)
        with torch.no_grad():
            fired = out.feature_acts.bool().float()
            if fired.is_sparse:
                fired = fired.to_dense()
            silent.add_(1)[fired.sum(-2).bool()] = 0
            frequency.add_(fired.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Peer(step, lambda x: sae.decode(sae.encode(x)))


PEERS: dict[str, Callable[..., Peer]] = {
    "sparsify": sparsify, "dictionary_learning": _dictionary_learning, "SAELens": _sae_lens,
}  # fmt: skip

if __name__ == "__main__":
    main()
