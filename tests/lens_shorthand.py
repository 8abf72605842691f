"""Short calls for tests of lens jobs: queued, and trained without training."""

from typing import Any

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.lens.reading import parse_lens
from orchestrator.config.lens.training import LensConfig
from orchestrator.curves.lens_curve import LensPoint, LensResult
from orchestrator.queue import Claim, Lease
from tests.queue_shorthand import claim

FACTS: dict[str, Any] = {
    "d_model": 16, "heldout_tokens": 4096, "text": "a text", "logit_lens_kls": [3.0, 1.0, 0.0],
    "subject": {"sha256": "f" * 64, "n_layers": 3}, "tokens": {"id": "t" * 64, "n_tokens": 9_000},
}  # fmt: skip
SHA256 = "5" * 64


def lens_config(**training: Any) -> LensConfig:
    return parse_lens({"training": training})


def lens_point(tokens: int, kl: float = 0.5) -> LensPoint:
    return LensPoint(tokens, kl, [1.5 * kl, 0.5 * kl, 0.0], loss=kl, grad_norm=1.0, wall_seconds=1.0)


def lens_result(**values: Any) -> LensResult:
    own: dict[str, Any] = {
        "outcome": "converged", "tokens_seen": 4096, "uri": f"/away/lenses/{SHA256}", "sha256": SHA256,
        "conditions": [5.0, 2.0, 1.0], "wall_seconds": 2.0,
    }  # fmt: skip
    return LensResult(**own | values)


def queue_lens(engine: Engine, *, name: str | None = None, again: bool = False, **training: Any) -> int:
    """Queue the training of a lens; return its job."""
    asked = queue.train_lens(engine, lens_config(**training), name=name, again=again)
    assert asked.job_id is not None
    return asked.job_id


def take_lens(engine: Engine) -> Claim:
    """Claim the next job, which must be one that trains a lens."""
    taken = claim(engine)
    assert taken.kind == "lens"
    return taken


def begin_lens(engine: Engine, lease: Lease, tokens: int = 0) -> None:
    queue.begin(engine, lease, FACTS, tokens, kind="lens")


def train_lens(engine: Engine, **values: Any) -> int:
    """Let the next job, which must train a lens, come to its end; return it."""
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    queue.record(engine, lease, [lens_point(2048), lens_point(4096, 0.25)])
    queue.finish_lens(engine, lease, lens_result(**values))
    return lease.job_id
