"""Which implementation runs each part of a step on this device: measured once per shape, and remembered in a folder."""

import functools
import hashlib
import importlib.util
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worker.checked_folder import write_file
from worker.sae.compiled.autotune_cases import TRIALS, AutotuneCase, Shape
from worker.sae.compiled.operations import PLAIN, Operations

_RUNS = 7
"""Timed runs of each, of which the median counts."""
_LONG_MS = 20.0
"""A longer run is not repeated: plain torch takes seconds where one latent fires on most tokens."""


class _Measured(NamedTuple):
    winner: str
    milliseconds: dict[str, float]


Timer = Callable[[Callable[[], object]], float]


def operations(shape: Shape, *, folder: Path | None, parts: Sequence[str] = tuple(TRIALS)) -> Operations:
    """Return the fastest implementation of each part: PLAIN's on a CPU and without Triton.

    On CUDA each of `parts` is run a few times in both forms; the winners are read from and written to `folder`. A
    kernel that does not compile, or does not agree with plain torch, is not chosen, and one warning says so.
    """
    if shape.device != "cuda" or importlib.util.find_spec("triton") is None:
        return PLAIN
    return chosen({part: winner(part, shape, folder=folder).winner for part in parts})


def chosen(winners: Mapping[str, str]) -> Operations:
    """Return the operations of some winners by part, as `winner` names them; the rest is PLAIN's."""
    found = PLAIN._asdict()
    for part, name in winners.items():
        found |= {field: function for field, function in implementations(part)[name]._asdict().items()
                  if field in TRIALS[part].fields}  # fmt: skip
    return Operations(**found)


def implementations(part: str) -> dict[str, Operations]:
    """Return what there is to choose from, by name; torch first."""
    kernels = triton_operations()
    found = {"torch": PLAIN, "triton": kernels}
    if part == "encode":
        for way in ("narrow", "library"):
            encoders = {name: functools.partial(getattr(kernels, name), way=way) for name in ("encode", "encode_top_k")}
            found[f"triton-{way}"] = kernels._replace(**encoders)
    return found


def triton_operations() -> Operations:
    """Return the Triton kernels.

    Raises:
        ImportError: there is no Triton, or one too old.
    """
    from worker.sae.compiled.kernels import adam, bags, blockmax, counters, segments

    return Operations(
        blockmax.encode,
        blockmax.block_maxima,
        blockmax.select,
        blockmax.encode_top_k,
        bags.decode,
        bags.reconstruction_error,
        bags.sampled_product,
        segments.latent_gradients,
        segments.add_latent_gradients,
        segments.sums_by_latent,
        counters.count_tokens_since_fired,
        adam.adam,
        adam.gradient_squares,
    )


def winner(part: str, shape: Shape, *, folder: Path | None) -> _Measured:
    """Return the fastest of a part's implementations, from the folder or by measuring."""
    key = _key(part, shape)
    path = None if folder is None else folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    known = _read(path, key)
    if known is not None:
        return known
    try:
        found = measure(TRIALS[part], shape, implementations(part))
    except (ImportError, RuntimeError) as error:
        # Without memory for the trial too: a step that has none says so itself.
        _warn(part, error)
        return _Measured("torch", {})
    # A failure may be of this moment: it is tried again in the next process.
    if path is not None and all(ms > 0 for ms in found.milliseconds.values()):
        _write(path, {"key": key, **found._asdict()})
    return found


def measure(
    trial: AutotuneCase, shape: Shape, among: Mapping[str, Operations], *, timer: Timer | None = None
) -> _Measured:
    """Run each of `among` on the same made-up tensors; those that fail or disagree with the first get −1 ms.

    Raises:
        RuntimeError: the first failed.
    """
    from triton.errors import TritonError

    timer = timer or _milliseconds
    wanted: tuple[Tensor, ...] | None = None
    found: dict[str, float] = {}
    for name, implementation in among.items():
        inputs = trial.inputs(shape)
        run = functools.partial(trial.run, implementation, inputs)
        try:
            got = tuple(value.clone() for value in run())
            wanted = wanted or got
            trial.check(got, wanted, shape.dtype)
            found[name] = timer(run)
        except (TritonError, RuntimeError, ValueError, TypeError, OSError) as error:
            if wanted is None:
                raise
            _warn(name, error)
            found[name] = -1.0
    return _Measured(min((ms, name) for name, ms in found.items() if ms >= 0)[1], found)


def _milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of a run by the device's own clock; the caller has warmed it up."""
    times: list[float] = []
    while len(times) < _RUNS and max(times, default=0.0) < _LONG_MS:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _key(part: str, shape: Shape) -> str:
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts = {"part": part, "gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}
    return json.dumps({**facts, **shape._asdict(), "dtype": str(shape.dtype)}, sort_keys=True)


def _read(path: Path | None, key: str) -> _Measured | None:
    """Return what the file says, or None if it is missing, torn, of another key, or not ours."""
    if path is None:
        return None
    try:
        content: Any = json.loads(path.read_bytes())
        known = _Measured(content["winner"], dict(content["milliseconds"]))
        return known if content["key"] == key and known.winner in known.milliseconds else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, content: dict[str, object]) -> None:
    """Write a file atomically: of two processes the later wins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(content).encode())
    except OSError as error:
        warnings.warn(f"the choice of kernels is not remembered: {error}", RuntimeWarning, stacklevel=2)


@functools.lru_cache
def _warned(name: str, kind: str) -> None:
    warnings.warn(f"{name}: plain torch runs instead of a Triton kernel ({kind})", RuntimeWarning, stacklevel=4)


def _warn(name: str, error: Exception) -> None:
    first = str(error).strip().partition("\n")[0][:200]
    _warned(name, f"{type(error).__name__}: {first}")
