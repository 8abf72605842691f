"""Measured jobs and fits made by hand, for tests of what is built on them."""

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.curves.point import Point, evaluation_grid
from orchestrator.formatting import Interval
from orchestrator.scaling.types import Fit, JobMeasurement, LawName, Residual

FIRST, BATCH = 8192, 1024
START: dict[str, Any] = {
    "sweep": "s", "state": "succeeded", "outcome": "converged", "reason": None, "subject": "gpt2",
    "subject_size": 10**6, "hook": "layer 3 resid_post", "data": "text", "activation": "topk", "d_model": 64,
    "n_latents": 256, "k": 8,
    "lr": 1e-3, "lr_is_auto": False, "seed": 0, "batch_tokens": BATCH, "max_tokens": 2**22, "untrained_fvu": 1.2,
    "dead_share": 0.0, "l_inf": None, "l_inf_se": None, "device": "cpu", "threads": 1,
}  # fmt: skip


def measured(job_id: int, curve: Sequence[tuple[int, float]] = (), **values: Any) -> JobMeasurement:
    """Return a job with this curve; what depends on the curve follows from it."""
    seen, fvu = curve[-1] if curve else (0, None)
    of_curve: dict[str, Any] = {
        "job_id": job_id, "config_id": f"c{job_id}", "tokens_seen": seen, "fvu": fvu, "tokens_to_convergence": {},
        "tokens_lower_bound": {}, "wall_seconds": float(seen) / 1e5,
        "curve": tuple(Point(t, loss, loss, loss, 0.0, 0.0, 8.0, 0.1, t / 1e5, t * 1e6, t * 1e6, t * 1e5)
                       for t, loss in curve),
    }  # fmt: skip
    return JobMeasurement(**(START | of_curve | values))


def grid(max_tokens: int) -> list[int]:
    return evaluation_grid(first_point_tokens=FIRST, batch_tokens=BATCH, max_tokens=max_tokens)


def power_law(
    *, b: float = -0.3, e: float = 0.1, a: float = 0.5, ns: Sequence[int] = (256, 512, 1024, 2048), noise: float = 0.01,
    n_draws: int = 200, seed: int = 0, **values: Any,
) -> Fit:  # fmt: skip
    """Return an L(N) at k = 8, with draws around it as a bootstrap of so much noise would have them."""
    import numpy as np

    generator = np.random.default_rng(seed)
    truth = np.array([a, b, e])
    draws = truth + generator.normal(0, 1, (n_draws, 3)) * np.array([3, 1, 1]) * noise
    draws[:, 2] = np.abs(draws[:, 2])
    losses = [math.exp(a + b * math.log(n)) + e for n in ns]
    residuals = tuple(
        Residual((at + 1,), n, 8, "gpt2", loss, loss, noise * (-1) ** at)
        for at, (n, loss) in enumerate(zip(ns, losses, strict=True))
    )
    return fit("ln", "+e", dict(zip("abe", truth, strict=True)), draws.tolist(), residuals, group="k=8", **values)


def fit(
    law: LawName, form: str, values: dict[str, float], draws: Sequence[Sequence[float]],
    residuals: tuple[Residual, ...], **more: Any,
) -> Fit:  # fmt: skip
    """Return a fit with intervals from its draws."""
    import numpy as np

    low, high = np.quantile(np.array(draws), [0.05, 0.95], axis=0)
    intervals = {name: Interval(float(value), float(low[at]), float(high[at])) for at, (name, value) in
                 enumerate(values.items())}  # fmt: skip
    start: dict[str, Any] = {
        "sweeps": ("s",), "group": "", "subject": "gpt2", "equation": "", "scores": (), "irreducible": None,
        "excluded": (), "holdout_error": None, "holdout_jobs": (), "seed_sigma": None, "n_bootstrap": len(draws),
    }  # fmt: skip
    rows = tuple(tuple(float(value) for value in row) for row in draws)
    return Fit(law=law, form=form, coefficients=intervals, draws=rows, residuals=residuals, **(start | more))
