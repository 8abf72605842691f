"""One training step on a GPU, timed part by part, for `benchmarks.gpu_check`."""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import sparsify
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.compiled import autotune
from worker.sae.compiled.autotune_cases import TRIALS, Shape
from worker.sae.compiled.compiled_step import CompiledStep
from worker.sae.compiled.operations import PLAIN
from worker.sae.scaled_product import FLOAT8, ScaledRows
from worker.sae.tiled_encode import select
from worker.sae.train_state import TrainState, train_step

DEAD_AFTER = 10_000_000


class Place(NamedTuple):
    """Where a part runs, and at what size."""

    device: str
    folder: Path
    is_rehearsal: bool


class StepShape(NamedTuple):
    d_model: int
    n_latents: int
    k: int
    batch_tokens: int

    @property
    def operations(self) -> float:
        """Return the floating-point operations of the encoder's product."""
        return 2.0 * self.batch_tokens * self.d_model * self.n_latents


SHAPES = (
    StepShape(768, 32_768, 32, 8192),
    StepShape(768, 131_072, 32, 16_384),
    StepShape(2304, 65_536, 64, 8192),
)
REHEARSED = (StepShape(16, 128, 4, 64),) * len(SHAPES)


def ceilings(place: Place) -> Iterator[dict[str, Any]]:
    """Yield what this device does at best: a square bfloat16 product, and a copy counted read and written."""
    size = 64 if place.is_rehearsal else 8192
    a, b = (torch.randn(size, size, device=place.device).to(torch.bfloat16) for _ in range(2))
    source = torch.empty(size * size * 16, device=place.device, dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    took = timed({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, place, repeats=20)
    yield {
        "device": torch.cuda.get_device_name() if place.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "bf16 TFLOP/s": 2.0 * size**3 / took["product"] / 1e12,
        "copy TB/s": 2.0 * len(source) / took["copy"] / 1e12,
    }


def step(place: Place, which: int) -> Iterator[dict[str, Any]]:
    """Yield the step against the bare bfloat16 product of its shape; then with dead latents too; then plain torch."""
    shape = (REHEARSED if place.is_rehearsal else SHAPES)[which]
    config, x = _config(shape), _batch(shape, place)
    said: list[str] = []
    state = TrainState.fresh(config, x[: min(len(x), 4096)])
    started = time.perf_counter()
    compiled = compiled_step(state, config, place, said)
    started = time.perf_counter() - started
    W_enc, rows = state.model.W_enc.detach().to(torch.bfloat16), x.to(torch.bfloat16)
    out = torch.empty(len(x), len(W_enc), device=place.device, dtype=torch.bfloat16)
    works: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(rows, W_enc.T, out=out),
        "step": lambda: compiled(state, x, config),
    }
    took = timed(works, place)
    way = "plain" if compiled.failed else "CUDA graph" if compiled._replays else "compiled"
    found: dict[str, Any] = {**shape._asdict(), "said": said, "way": way, "start s": started}
    found["ms"] = {name: 1e3 * seconds for name, seconds in took.items()}
    found["host ms"] = 1e3 * _host_seconds(works["step"], place)
    found["syncs"] = _syncs(works["step"], place)
    found["kernels"] = _choices(shape, place)
    found["profile"] = _profile(works["step"], place)
    found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9 if place.device == "cuda" else None
    yield found | _ratios(found["ms"], shape)
    found["dead share"] = _put_to_sleep(state, 0.1)
    found["ms"]["step, 10% dead"] = 1e3 * timed({"step": works["step"]}, place)["step"]
    assert state.aux_tokens > 0, "AuxK did not run"
    assert float(state.sums[1]) > 0, "no latent was dead"
    found["profile, 10% dead"] = _profile(works["step"], place)
    yield found | _ratios(found["ms"], shape)
    plain = timed({"plain": lambda: train_step(state, x, config)}, place, repeats=3)
    found["ms"]["plain torch"] = 1e3 * plain["plain"]
    yield found | _ratios(found["ms"], shape)


def _ratios(ms: Mapping[str, float], shape: StepShape) -> dict[str, Any]:
    seconds = ms["step"] / 1e3
    return {
        "step/product": ms["step"] / ms["product"],
        "dead/product": ms["step, 10% dead"] / ms["product"] if "step, 10% dead" in ms else None,
        "product TFLOP/s": shape.operations / ms["product"] / 1e9,
        "tokens/s": shape.batch_tokens / seconds,
    }


def warm(place: Place, which: int) -> Iterator[dict[str, Any]]:
    """Compile what `step` will need, beside other parts; what is timed meanwhile is thrown away."""
    shape = (REHEARSED if place.is_rehearsal else SHAPES)[which]
    config, x = _config(shape), _batch(shape, place)
    state = TrainState.fresh(config, x[: min(len(x), 4096)])
    said: list[str] = []
    started = time.perf_counter()
    compiled = compiled_step(state, config, place, said)
    _put_to_sleep(state, 0.1)
    compiled(state, x, config)
    _synchronize(place)
    yield {"seconds": time.perf_counter() - started, "said": said, "failed": compiled.failed}


def peers(place: Place) -> Iterator[dict[str, Any]]:
    """Yield sparsify's step, on a GPU with its Triton decoder, beside ours."""
    found: dict[str, Any] = {}
    for which in (0, 1):
        shape = (REHEARSED if place.is_rehearsal else SHAPES)[which]
        config, x = _config(shape), _batch(shape, place)
        state = TrainState.fresh(config, x[: min(len(x), 4096)])
        compiled = compiled_step(state, config, place, [])
        works: dict[str, Callable[[], object]] = {
            "ours": partial(compiled, state, x, config),
            "sparsify": partial(sparsify(x, shape.n_latents, shape.k).step, x),
        }
        took = timed(works, place, repeats=5)
        found[f"n {shape.n_latents}"] = {name: 1e3 * seconds for name, seconds in took.items()}
        yield found
        del works, state, compiled
        if place.device == "cuda":
            torch.cuda.empty_cache()


def float8(place: Place) -> Iterator[dict[str, Any]]:
    """Yield step and bare product in float8_e4m3 beside those in bfloat16, and what float8 selects otherwise."""
    found: dict[str, Any] = {}
    for which in (0, 1):
        shape = (REHEARSED if place.is_rehearsal else SHAPES)[which]
        x, said, works = _batch(shape, place), list[str](), dict[str, Callable[[], object]]()
        for dtype in ("bfloat16", "float8_e4m3"):
            config = _config(shape, encode_dtype=dtype)
            state = TrainState.fresh(config, x[: min(len(x), 4096)])
            works[f"step, {dtype}"] = partial(compiled_step(state, config, place, said), state, x, config)
        W_enc = state.model.W_enc.detach().clone()
        works["product, bfloat16"] = partial(torch.mm, x.to(torch.bfloat16), W_enc.to(torch.bfloat16).T)
        works["product, float8_e4m3"] = partial(ScaledRows.of(x).times, ScaledRows.of(W_enc))
        off = _selected_otherwise(x[:1024], W_enc, shape.k)
        took = timed(works, place, repeats=5)
        ms = {name: 1e3 * seconds for name, seconds in took.items()}
        found[f"n {shape.n_latents}"] = {"ms": ms, "latents off": off, "said": said}
        yield found
        del works, state, W_enc
        if place.device == "cuda":
            torch.cuda.empty_cache()


def _selected_otherwise(x: Tensor, W_enc: Tensor, k: int) -> float:
    """Return the share of the latents selected by way of float8 that full precision does not select."""
    origin, encoder = x.new_zeros(x.shape[1]), (W_enc, W_enc.new_zeros(len(W_enc)))
    exact, found = (select(x, origin, encoder, k=k, dtype=dtype).top_indices for dtype in (None, FLOAT8))
    mark = torch.zeros(len(x), len(W_enc), dtype=torch.bool, device=x.device).scatter_(1, exact, True)
    return float((~mark.gather(1, found)).double().mean())


def decoder(place: Place) -> Iterator[dict[str, Any]]:
    """Yield the decoder forward and backward at flex-sae's published cell, k by k."""
    n, d, batch = (128, 16, 64) if place.is_rehearsal else (65_536, 2304, 8192)
    found: dict[str, Any] = {}
    for k in (4,) if place.is_rehearsal else (32, 64, 128):
        shape = Shape(place.device, batch, d, n, k, torch.bfloat16)
        for part in ("decode", "gradients"):
            at = TRIALS[part].inputs(shape)
            works = {name: partial(TRIALS[part].run, ops, at) for name, ops in _implementations(part, place).items()}
            found[f"{part}, k {k}"] = {name: 1e3 * s for name, s in timed(works, place, repeats=5).items()}
        yield found


def compiled_step(state: TrainState, config: JobConfig, place: Place, said: list[str]) -> CompiledStep:
    backend = "eager" if place.is_rehearsal else "inductor"
    made = CompiledStep(config, state, say=said.append, folder=place.folder / "kernels", backend=backend)
    made.compile_first_graph(state)
    return made


def _config(shape: StepShape, *, encode_dtype: str = "bfloat16") -> JobConfig:
    batch = shape.batch_tokens
    training = {"batch_tokens": batch, "shuffle_tokens": batch, "max_tokens": 2**41, "encode_dtype": encode_dtype}
    return parse(
        {
            "sae": {"n_latents": shape.n_latents, "k": shape.k},
            "training": {**training, "dead_after_tokens": DEAD_AFTER},
        }
    )


def _batch(shape: StepShape, place: Place) -> Tensor:
    x = torch.randn(shape.batch_tokens, shape.d_model, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x).to(place.device)


def _put_to_sleep(state: TrainState, share: float) -> float:
    """Make the first latents too weak to be selected, and dead; return their share."""
    n_dead = int(share * state.model.n_latents)
    with torch.no_grad():
        state.model.W_enc[:n_dead] *= 1e-3
        state.model.b_enc[:n_dead] = -1.0
    state.tokens_seen = DEAD_AFTER
    state.tokens_since_fired[:n_dead] = 2 * DEAD_AFTER
    return n_dead / state.model.n_latents


def _synchronize(place: Place) -> None:
    if place.device == "cuda":
        torch.cuda.synchronize()


def timed(
    works: Mapping[str, Callable[[], object]], place: Place, *, repeats: int = 10, rounds: int = 5, warm_up: int = 2
) -> dict[str, float]:
    """Return the median seconds of one run of each, in turns, each `repeats` times without waiting in between."""
    if place.is_rehearsal:
        repeats = rounds = warm_up = 1
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + warm_up):
        for name, work in works.items():
            _synchronize(place)
            started = time.perf_counter()
            for _ in range(repeats):
                work()
            _synchronize(place)
            times[name].append((time.perf_counter() - started) / repeats)
    return {name: statistics.median(taken[warm_up:]) for name, taken in times.items()}


def _host_seconds(work: Callable[[], object], place: Place) -> float:
    """Return the host's part of a run: what it takes until everything is queued."""
    _synchronize(place)
    started = time.perf_counter()
    for _ in range(5):
        work()
    seconds = (time.perf_counter() - started) / 5
    _synchronize(place)
    return seconds


def _syncs(work: Callable[[], object], place: Place) -> int | None:
    """Return how often eight runs make the host wait for the device."""
    if place.device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(8):
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not torch's own remark, once a process, that this way of asking is a prototype.
    return sum("called a synchronizing" in str(one.message) for one in caught)


def _profile(work: Callable[[], object], place: Place) -> dict[str, float]:
    """Return the milliseconds of each kernel in a step, the longest first."""
    if place.device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
    return {row.key[:70]: round(row.self_device_time_total / 3e3, 4) for row in rows[:18]}


def _implementations(part: str, place: Place) -> Mapping[str, Any]:
    if place.device != "cuda":
        return {"torch": PLAIN}
    return autotune.implementations(part)


def _choices(shape: StepShape, place: Place) -> dict[str, Any]:
    """Return the milliseconds of each implementation of each part, as remembered by `autotune`."""
    folder = place.folder / "kernels"
    found = {}
    for path in sorted(folder.glob("*.json")) if folder.exists() else ():
        content = json.loads(path.read_bytes())
        key = json.loads(content["key"])
        if key["n_latents"] == shape.n_latents:
            name = f"{key['part']}, k {key['k']}"
            found[name] = {each: round(ms, 4) for each, ms in content["milliseconds"].items()}
    return found
