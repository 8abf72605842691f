"""Cases of training on several devices; `python -m tests.sharded_cases STORE RANK FOLDER` computes them in 3 processes.

Importing torch takes most of a short test's time: one group of processes runs every case, and the test reads the file.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.sharded.train_state import ShardedTrainState
from worker.sae.train_state import TrainState
from worker.trainer.train import train

N_PROCESSES = 3
BATCH, DEAD_AFTER = 24, 1000
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_pre")


class Case(NamedTuple):
    """One step from made-up parameters."""

    n: int
    d: int
    k: int
    size: int
    activation: str = "topk"
    dead: str = "none"
    """none, one (the last latent), some (more than k_aux, most of them in the first part), all."""
    ties: bool = False
    """Small whole numbers: many values are equal, and every sum is exact in any order."""
    clip_norm: float | None = None
    encode_dtype: str = "float32"
    n_layers: int = 1

    @property
    def name(self) -> str:
        words = [f"n{self.n}-d{self.d}-k{self.k}-{self.size}x", self.activation, f"dead-{self.dead}"]
        words += ["ties"] if self.ties else []
        words += ["clipped"] if self.clip_norm else []
        words += [f"layers{self.n_layers}"] if self.n_layers > 1 else []
        return "-".join(words + ([self.encode_dtype] if self.encode_dtype != "float32" else []))


CASES = [
    *(Case(37, 11, 5, size, dead=dead) for size in (2, 3) for dead in ("none", "one", "some", "all")),
    *(Case(37, 11, 5, 3, ties=True, dead=dead) for dead in ("none", "some")),
    *(Case(37, 11, 5, size, activation="multi_topk", dead="some") for size in (2, 3)),
    Case(37, 11, 10, 3, activation="multi_topk"),  # 4k > n
    Case(37, 11, 1, 2), Case(37, 11, 1, 3, dead="all", ties=True),
    Case(13, 7, 13, 2, dead="some"), Case(13, 7, 13, 3), Case(13, 7, 12, 3, ties=True),
    Case(9, 5, 1, 3, dead="one"), Case(3, 5, 2, 3), Case(64, 16, 8, 2, clip_norm=1e-3, dead="some"),
    Case(64, 16, 8, 2, encode_dtype="bfloat16"), Case(37, 11, 5, 3, n_layers=3, dead="some"),
    Case(37, 11, 5, 2, n_layers=2, activation="multi_topk", dead="one"),
]  # fmt: skip


def config_of(case: Case) -> JobConfig:
    sizes = {"batch_tokens": BATCH, "shuffle_tokens": BATCH, "max_tokens": 100 * BATCH, "first_point_tokens": BATCH}
    return parse(
        {
            "sae": {"n_latents": case.n, "k": case.k, "k_aux": 4, "activation": case.activation},
            "training": {**sizes, "dead_after_tokens": DEAD_AFTER, "encode_dtype": case.encode_dtype},
            "optimizer": {"lr": 0.01, "clip_norm": case.clip_norm, "ema": 0.9},
        }
    )


def state_of(case: Case) -> TrainState:
    """Return a whole state with made-up parameters, one step before latents are counted as dead."""
    draw = torch.Generator().manual_seed(case.n * 1000 + case.d)
    state = TrainState(config_of(case), case.d, n_layers=case.n_layers)
    for name, value in state.model.named_parameters():
        made = torch.randn(value.shape, generator=draw)
        if case.ties:
            made = made.mul(2).round().clamp(-2, 2)
        elif name == "W_dec":
            made = functional.normalize(made, dim=1)
        value.data.copy_(made)
    state.variances = tuple(2.0 / (1 + layer) for layer in range(case.n_layers))
    state.mu = torch.randn(case.d, generator=draw)
    state.tokens_seen = 10 * DEAD_AFTER
    silent = torch.zeros(case.n, dtype=torch.bool)
    silent[{"none": slice(0), "one": slice(-1, None), "some": slice(case.n // 2), "all": slice(None)}[case.dead]] = True
    silent[-1] |= case.dead == "some"
    # What fires in this batch is alive again: the made-up batch leaves some of them silent.
    state.tokens_since_fired[silent] = 5 * DEAD_AFTER
    if case.dead != "none":
        state.model.b_enc.data[silent] -= 3
    return state


def batch_of(case: Case) -> Tensor:
    x = torch.randn(BATCH, case.d, generator=torch.Generator().manual_seed(7))
    return x.round() if case.ties else x


LONG = {"topk": Case(53, 12, 3, 3), "multi_topk": Case(53, 12, 3, 2, activation="multi_topk")}
N_STEPS = 50


def long_config(case: Case) -> JobConfig:
    """Return a config of 50 steps in which latents die and AuxK works."""
    values = config_of(case).model_dump(mode="json", exclude_unset=True)
    values["training"] |= {"dead_after_tokens": 4 * BATCH, "max_tokens": N_STEPS * BATCH}
    values["optimizer"] |= {"warmup_tokens": 5 * BATCH, "clip_norm": 1.0}
    return parse(values)


def long_data(case: Case, n_tokens: int = N_STEPS * BATCH, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(n_tokens, case.d, generator=torch.Generator().manual_seed(seed)), dim=1)


def run(state: TrainState, config: JobConfig, case: Case, *, steps: slice = slice(None)) -> TrainState:
    """Train on some of the batches."""
    batches = long_data(case).split(BATCH)[steps]  # type: ignore[no-untyped-call]
    for _ in train(state, batches, config=config, heldout=long_data(case, 200, seed=1)):
        pass
    return state


def _one_step(case: Case, shards: "Shards") -> dict[str, Any]:
    from worker.sae.train_state import train_step

    config, whole, x = config_of(case), state_of(case), batch_of(case)
    state = ShardedTrainState.scatter(whole if shards.rank == 0 else None, config, shard=shards(case), device="cpu")
    encoded = state.model.encode(x, k=state.model.k_widest)
    decoded = state.model.decode(encoded.top_acts, encoded.top_indices)
    total, aux, was_active = state.differentiate(x, config)
    gradients = {name: state._gathered(name, getattr(state.model, name).grad) for name in PARAMETERS}
    alike = torch.cat([state.model.b_pre.grad.flatten(), total.view(1), aux])  # type: ignore[union-attr]
    state.tokens_since_fired.copy_(whole.tokens_since_fired[state.shard.rows])
    state.model.zero_grad()
    train_step(state, x, config)
    return {
        "encoded": tuple(encoded[1:]), "decoded": decoded, "total": total, "aux": aux, "was_active": was_active,
        "gradients": gradients, "alike": state.shard.gather(alike), "after": state.tensors(),
        "values": state.values(),
    }  # fmt: skip


def _many_steps(name: str, shards: "Shards") -> dict[str, Any]:
    """Train on several processes; and half on one process, half on several, and the reverse."""
    case, half = LONG[name], N_STEPS // 2
    config = long_config(case)

    def fresh() -> TrainState:
        return TrainState.fresh(config, long_data(case, 256, seed=2))

    def scatter(whole: TrainState) -> ShardedTrainState:
        return ShardedTrainState.scatter(whole if shards.rank == 0 else None, config, shard=shards(case), device="cpu")

    whole_way = run(scatter(fresh()), config, case)
    first = run(scatter(fresh()), config, case, steps=slice(half))
    tensors, values = first.tensors(), first.values()
    alone = run(fresh(), config, case, steps=slice(half))
    second = run(scatter(alone), config, case, steps=slice(half, None))
    return {
        "curve": whole_way.curve, "tensors": whole_way.tensors(), "half": (tensors, values), "second": second.curve,
    }  # fmt: skip


class Shards:
    """The group of the first `size` processes, made when it is first asked for."""

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        self.rank = rank
        self._groups = {size: dist.new_group(list(range(size))) for size in range(2, N_PROCESSES + 1)}

    def __call__(self, case: Case) -> Any:
        from worker.sae.sharded.shard import Shard

        return Shard(case.n, self.rank, case.size, self._groups[case.size])


def main(store: Path, rank: int, folder: Path) -> None:
    from worker.trainer.distributed import join

    torch.set_num_threads(1)
    join(store, rank=rank, size=N_PROCESSES, device="cpu")
    shards = Shards(rank)
    work: dict[str, tuple[Case, Callable[[], dict[str, Any]]]] = {}
    for case in CASES:
        work[case.name] = case, lambda case=case: _one_step(case, shards)  # type: ignore[misc]
    for name, case in LONG.items():
        work[name] = case, lambda name=name: _many_steps(name, shards)  # type: ignore[misc]
    found = {name: compute() for name, (case, compute) in work.items() if rank < case.size}
    if rank == 0:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    from jaxtyping import install_import_hook

    with install_import_hook(["worker.sae", "worker.trainer.train"], "beartype.beartype"):
        main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)
