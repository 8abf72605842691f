"""Finished jobs of a known law, made by hand: a database as a laboratory's, without training anything."""

import math
import random
from collections.abc import Sequence

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point, evaluation_grid
from orchestrator.job_states import Outcome
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim

D_MODEL, RATE = 64, 1e5
"""Width at the hook point; tokens per second that the jobs say they were trained at."""
SIZES = (128, 256, 512, 1024, 2048)


def config(n_latents: int, k: int = 8, *, seed: int = 0, lr: float | None = 1e-3, max_tokens: int = 2**24) -> JobConfig:
    sizes = {"batch_tokens": 256, "shuffle_tokens": 1024, "heldout_tokens": 256, "first_point_tokens": 8192}
    return parse(
        {
            "subject": {"layer": 3},
            "sae": {"n_latents": n_latents, "k": k},
            "optimizer": {"lr": lr or "auto"},
            "training": {**sizes, "seed": seed, "max_tokens": max_tokens, "dead_after_tokens": 10_000_000},
            "stop": {"epsilon": 0.01},
        }
    )


def law(n_latents: int, k: int = 8) -> float:
    """Return the limit of fvu: exp(0.9 − 0.3·ln n) + 0.1, falling with k."""
    return (math.exp(0.9 - 0.3 * math.log(n_latents)) + 0.1) * math.pow(8 / k, 0.2)


def curve(limit: float, n_latents: int, max_tokens: int) -> list[tuple[int, float]]:
    """Return a curve that meets the plateau rule after a number of tokens that grows as n^0.6."""
    scale = 4000 * (n_latents / 128) ** 0.6
    whole = [
        (t, limit * (1 + (t / scale) ** -1.0))
        for t in evaluation_grid(first_point_tokens=8192, batch_tokens=256, max_tokens=max_tokens)
    ]
    from orchestrator.curves.convergence import has_converged

    end = next((at for at in range(1, len(whole)) if has_converged(whole[:at], epsilon=0.01)), len(whole))
    return whole[:end]


def points(values: Sequence[tuple[int, float]], n_latents: int, k: int) -> list[Point]:
    """Return a curve as it is stored, with time and FLOPs that go with its tokens."""
    dense, executed = 12.0 * n_latents * D_MODEL, 2.0 * n_latents * D_MODEL + 8.0 * k * D_MODEL
    return [
        Point(t, loss, loss, loss, 0.0, 0.01, float(k), 0.1, t / RATE, dense * t, executed * t, 5e4 * t)
        for t, loss in values
    ]


def finish(engine: Engine, *, noise: float = 0.003, outcome: Outcome = "converged", lr: float = 1e-3) -> int:
    """Claim the next job, let it have come to what the law says, and return its id."""
    claimed = claim(engine)
    sae, training = claimed.job_config.sae, claimed.job_config.training
    n_latents = sae.n_latents or 0
    draw = random.Random(f"{n_latents} {sae.k} {training.seed}")
    limit = law(n_latents, sae.k) * math.exp(noise * draw.gauss(0, 1))
    given = claimed.job_config.optimizer.lr
    facts = {"d_model": D_MODEL, "n_latents": n_latents, "k": sae.k, "lr": lr if given == "auto" else given}
    place = {
        "site": f"{claimed.job_config.subject.site} of block {claimed.job_config.subject.layer}",
        "parameters_run": 10**6,
    }
    queue.begin(engine, claimed.lease, facts | {"device": "cpu", "subject": place}, 0)
    known = curve(limit, n_latents, training.max_tokens)
    queue.record(engine, claimed.lease, points(known, n_latents, sae.k))
    last = points(known, n_latents, sae.k)[-1]
    queue.finish(
        engine, claimed.lease,
        queue.Result(outcome, last.tokens_seen, 1.2, "file", last.wall_seconds, last.flops_dense, last.flops_executed,
                     last.flops_subject),
    )  # fmt: skip
    return claimed.lease.job_id


def finished_sweep(engine: Engine, *configs: JobConfig, name: str = "law") -> list[int]:
    """Put a sweep into the queue and let all of its jobs have ended."""
    chosen = configs or tuple(config(n, k) for k in (4, 8) for n in SIZES)
    queue.enqueue(engine, Sweep(name, chosen, labels={"project": "law"}))
    return [finish(engine) for _ in chosen]
