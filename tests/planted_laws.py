"""Jobs whose losses follow a known law, and fits to them: what figures and reports are tried on."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.curves.point import Point, point_of
from orchestrator.errors import FitError
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.laws.registry import laws_to_fit
from orchestrator.scaling.types import Fit, JobMeasurement, LawName, StoredFit

SIZES, KS = (64, 128, 256, 512, 1024), (4, 8, 16)
D_MODEL, BATCH = 128, 256
EPSILONS = (0.002, 0.005, 0.01, 0.02)


def loss(n: int, k: int) -> float:
    """Return the planted L(N,K), with a little noise that depends on the job alone."""
    power = math.exp(0.6 - 0.25 * math.log(k) - 0.3 * math.log(n) - 0.01 * math.log(k) * math.log(n))
    return (power + 0.05) * (1 + 0.004 * math.sin(37.0 * n + k))


def job(job_id: int, n: int = 128, k: int = 4, **values: Any) -> JobMeasurement:
    """Return one job that has converged; any field may be given."""
    limit, tokens = loss(n, k), 3_000.0 * n**0.6
    start: dict[str, Any] = {
        "job_id": job_id, "sweep": "planted", "config_id": f"c{job_id}", "state": "succeeded", "outcome": "converged",
        "reason": None, "subject": "shipped:stdlib-gpt2", "subject_size": 793_088, "hook": "layer 3, resid_post",
        "data": "python:stdlib", "activation": "topk", "d_model": D_MODEL, "n_latents": n, "k": k,
        "lr": 0.2 / math.sqrt(n), "lr_is_auto": False, "seed": 0, "batch_tokens": BATCH, "max_tokens": 10**6,
        "tokens_seen": int(4 * tokens), "fvu": limit, "untrained_fvu": 1.2, "dead_share": 0.01 * math.log2(n),
        "l_inf": limit * 0.998, "l_inf_se": 0.0004, "tokens_to_convergence": dict.fromkeys(EPSILONS, tokens),
        "tokens_lower_bound": dict.fromkeys(EPSILONS), "wall_seconds": 12.5, "device": "cpu", "threads": 1,
        "curve": curve(n, limit, tokens, l0=float(k)), "l0": float(k),
    }  # fmt: skip
    return JobMeasurement(**start | values)


def curve(n: int, limit: float, tokens: float, *, l0: float) -> tuple[Point, ...]:
    """Return a curve that falls to its limit."""
    rest = {
        "loss": 0.1,
        "aux_loss": 0.0,
        "dead_share": 0.01 * math.log2(n),
        "l0": l0,
        "grad_norm": 0.1,
        "flops_subject": 0.0,
    }
    places = [int(tokens * 2.0 ** (at / 4 - 5)) for at in range(29)]
    return tuple(
        point_of({"tokens_seen": t, "fvu": min(0.9, limit * (1 + 0.02 * (tokens / t))), "wall_seconds": t / 1e4,
                  "fvu_raw": limit, "flops_dense": 12.0 * n * D_MODEL * t, "flops_executed": 3.0 * n * D_MODEL * t,
                  **rest})
        for t in places
    )  # fmt: skip


def grid(sizes: Sequence[int] = SIZES, ks: Sequence[int] = KS, **values: Any) -> list[JobMeasurement]:
    """Return a job for each n and k."""
    return [job(at, n, k, **values) for at, (k, n) in enumerate(((k, n) for k in ks for n in sizes), 1)]


def censored(row: JobMeasurement, bound: float) -> JobMeasurement:
    """Return a job that was stopped before it converged."""
    counts: dict[str, Any] = {
        "tokens_to_convergence": dict.fromkeys(EPSILONS),
        "tokens_lower_bound": dict.fromkeys(EPSILONS, bound),
    }
    return replace(row, outcome="max_tokens", **counts)


def fits(rows: Sequence[JobMeasurement], *laws: LawName) -> list[Fit]:
    """Fit what can be fitted, with few refits."""
    found: list[Fit] = []
    for law in laws or laws_to_fit():
        try:
            found += fit(law, rows, n_bootstrap=60)
        except FitError:
            continue
    return found


def stored(found: Sequence[Fit]) -> tuple[StoredFit, ...]:
    """Return fits with places as the database gives them."""
    return tuple(StoredFit(at, 0.0, None, "0.1.0", None, None, one) for at, one in enumerate(found, 11))
