"""What supervisor and trainer say to each other: one order down, messages up, each one JSON line."""

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from orchestrator.config import JobConfig, parse
from orchestrator.curve import Point


class Exit(IntEnum):
    """What a trainer's exit status means."""

    DONE = 0
    INTERNAL = 70
    YIELDED = 75
    BAD_CONFIG = 78
    OUT_OF_MEMORY = 79


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    uri: str
    tokens_seen: int
    sha256: str


@dataclass(frozen=True)
class Order:
    """What one attempt shall train, and where."""

    job_id: int
    attempt: int
    config: JobConfig
    artifacts: str
    """Folder of this attempt's checkpoints and final SAE."""
    tokens_folder: str
    """Folder of packed token files, shared by jobs."""
    resume: tuple[Saved, ...]
    """Checkpoints of earlier attempts, newest first."""
    device: str
    threads: int
    checkpoint_seconds: float
    supervisor: int
    """Process id of the parent: the trainer ends when it does."""

    def to_json(self) -> bytes:
        """Return the order as one line."""
        return _line(asdict(self) | {"config": self.config.model_dump(mode="json")})

    @classmethod
    def from_json(cls, line: bytes) -> "Order":
        """Read an order.

        Raises:
            ConfigError: the config is not valid.
        """
        values = json.loads(line)
        resume = tuple(Saved(**saved) for saved in values["resume"])
        return cls(**values | {"config": parse(values["config"]), "resume": resume})


@dataclass(frozen=True)
class Started:
    """Everything is loaded; training goes on from here."""

    tokens_seen: int
    facts: dict[str, Any]
    """What was resolved at the start: sizes, learning rate, device, versions."""


@dataclass(frozen=True)
class Alive:
    """The trainer moved."""

    tokens_seen: int
    tokens_per_second: float
    phase: str = "training"


@dataclass(frozen=True)
class Measured:
    """One point of the curve."""

    point: Point


@dataclass(frozen=True)
class Ended:
    """The job's result. The final weights are on disk."""

    outcome: str
    """converged, max_tokens or diverged."""
    tokens_seen: int
    untrained_fvu: float
    artifact_uri: str | None
    wall_seconds: float
    flops_dense: float
    flops_executed: float
    flops_subject: float


@dataclass(frozen=True)
class Failure:
    """Why the trainer gives up."""

    kind: str
    message: str
    hint: str = ""


Message = Started | Alive | Measured | Saved | Ended | Failure
_KINDS: dict[str, type[Message]] = {
    "started": Started,
    "alive": Alive,
    "progress": Measured,
    "checkpoint": Saved,
    "result": Ended,
    "error": Failure,
}


def encode(message: Message) -> bytes:
    """Return a message as one JSON line; floats keep every bit."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(message, cls))
    values = message.point._asdict() if isinstance(message, Measured) else asdict(message)
    return _line({"type": kind} | values)


def decode(line: bytes) -> Message | None:
    """Read a message; None for a line that is not one."""
    try:
        values = json.loads(line)
        cls = _KINDS[values.pop("type")]
        return Measured(Point(**values)) if cls is Measured else cls(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def describe(message: Message) -> str:
    """Return a message in words, for a log."""
    match message:
        case Started(tokens_seen, facts):
            sizes = ", ".join(f"{name} {facts[name]}" for name in ("n_latents", "k", "d_model", "lr") if name in facts)
            where = f"{facts.get('device', 'cpu')}, {facts.get('threads', '?')} threads"
            return f"training from {tokens_seen:,} tokens on {where}: {sizes}"
        case Alive(tokens_seen, rate, phase):
            return f"{phase}: {tokens_seen:,} tokens, {rate:,.0f}/s"
        case Measured(point):
            return (
                f"{point.tokens_seen:>13,} tokens  fvu {point.fvu:.4f}  l0 {point.l0:.1f}  dead {point.dead_share:.1%}"
            )
        case Saved(uri, tokens_seen):
            return f"checkpoint at {tokens_seen:,} tokens: {uri}"
        case Ended(outcome, tokens_seen):
            return f"{outcome} after {tokens_seen:,} tokens"
        case Failure(kind, text, hint):
            return f"{kind}: {text}" + (f" ({hint})" if hint else "")


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
