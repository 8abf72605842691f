"""Jobs as the laws see them, made by hand."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np

from orchestrator.curves.point import Point
from orchestrator.scaling.types import JobMeasurement

_numbers = count(1)
EPSILONS = (0.002, 0.005, 0.01, 0.02)
N_OF_G1 = tuple(2**e for e in (11, 13, 15, 17, 19, 21))
K_OF_G1 = (8, 16, 32, 64, 128, 256, 512)
EQUATION_3 = {"alpha": -0.50, "beta_k": 0.26, "beta_n": -0.017, "gamma": -0.042, "zeta": -1.32, "eta": -0.085}


def measured(n: int | None = 64, k: int = 8, fvu: float | None = 0.5, **values: Any) -> JobMeasurement:
    """Return a converged job; `tokens` and `bound` are its tokens to convergence, at every epsilon."""
    job_id = values.pop("job_id", next(_numbers))
    tokens, bound = values.pop("tokens", 500.0), values.pop("bound", None)
    row: dict[str, Any] = {
        "job_id": job_id, "sweep": "s", "config_id": f"config-{job_id}", "state": "succeeded", "outcome": "converged",
        "reason": None, "subject": "m", "subject_size": 1000, "hook": "resid_post of h.3", "data": "text",
        "activation": "topk", "d_model": 4096, "n_latents": n, "k": k, "lr": 0.01, "lr_is_auto": False, "seed": 0,
        "batch_tokens": 64, "max_tokens": 1000, "tokens_seen": 900, "fvu": fvu, "untrained_fvu": 1.1,
        "dead_share": 0.0, "l_inf": fvu, "l_inf_se": 0.0, "tokens_to_convergence": dict.fromkeys(EPSILONS, tokens),
        "tokens_lower_bound": dict.fromkeys(EPSILONS, bound), "wall_seconds": 1.0, "device": "cpu", "threads": 1,
        "curve": () if fvu is None else (point(900, fvu),),
    }  # fmt: skip
    return JobMeasurement(**(row | values))


def point(tokens: int, fvu: float, flops: float = 1e9) -> Point:
    return Point(tokens, fvu, fvu, fvu, 0.0, 0.0, 8.0, 1.0, 1.0, flops, flops / 2, flops / 4)


def line(sizes: Iterable[int], *, a: float = 0.4, b: float = -0.163, e: float = 0.199, noise: float = 0.0,
         seed: int = 0, **values: Any) -> list[JobMeasurement]:  # fmt: skip
    """Return one job per size on exp(a + b·ln n) + e, with errors of ln(loss)."""
    random = np.random.default_rng(seed)
    return [
        measured(n, fvu=float((np.exp(a + b * np.log(n)) + e) * np.exp(noise * random.normal())), **values)
        for n in sizes
    ]


def surface(n: float, k: float) -> float:
    """Return equation 3, with the paper's coefficients."""
    c, ln_k, ln_n = EQUATION_3, np.log(k), np.log(n)
    power = np.exp(c["alpha"] + c["beta_k"] * ln_k + c["beta_n"] * ln_n + c["gamma"] * ln_k * ln_n)
    return float(power + np.exp(c["zeta"] + c["eta"] * ln_k))


def grid(noise: float, seed: int) -> list[JobMeasurement]:
    """Return the 6 × 7 grid of equation 3 with errors of ln(loss)."""
    random = np.random.default_rng(seed)
    return [measured(n, k, surface(n, k) * float(np.exp(noise * random.normal()))) for n in N_OF_G1 for k in K_OF_G1]
