"""The messages of a supervisor and the process of its jobs, one JSON line each: orders down, reports up."""

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig, canonical_text
from orchestrator.config.validation import read_stored
from orchestrator.curves.lens_curve import LensPoint, LensResult
from orchestrator.curves.point import Point, point_of
from orchestrator.errors import ConfigError, OutOfMemory, SharedBy, SubjectError, is_of_machine
from orchestrator.formatting import named


class Exit(IntEnum):
    """What a trainer's exit status means."""

    DONE = 0
    INTERNAL = 70
    MACHINE = 74
    YIELDED = 75
    BAD_CONFIG = 78
    OUT_OF_MEMORY = 79


@dataclass(frozen=True)
class Assignment:
    """One job of an order: one attempt of it."""

    job_id: int
    attempt: int
    config: JobConfig
    artifacts: str
    """Folder of this attempt's checkpoints and final SAE."""
    resume: tuple[CheckpointRef, ...]
    """Checkpoints of earlier attempts, newest first."""
    subject_dtype: str | None = None
    """What an earlier attempt settled; the same in all jobs of an order."""


@dataclass(frozen=True)
class Order:
    """What one trainer is to train, and where: jobs that read one stream of activations."""

    jobs: tuple[Assignment, ...]
    tokens_folder: str
    """Folder of packed token files, shared by jobs."""
    compile_folder: str
    """Folder of compiled steps, shared by trainers."""
    device: str
    threads: int
    checkpoint_seconds: float
    supervisor: int
    """Process id of the parent: the trainer ends when it does."""
    compile: str = "auto"
    """auto or off: whether steps may be compiled."""
    caches_folder: str = ""
    """Folder of activation caches, shared by trainers; empty = activations are not kept."""
    cache_bytes: int = 0
    """What the caches of that folder may take."""
    lenses_folder: str = ""
    """Folder of the tuned lenses among the artifacts."""
    may_stay: bool = False
    """Whether the process, once all jobs are trained, may wait for an order to evaluate."""

    @property
    def kernels_folder(self) -> Path | None:
        """Return the folder of compiled kernels; None: nothing is kept."""
        return Path(self.compile_folder, "kernels") if self.compile_folder else None

    def to_json(self) -> bytes:
        """Return the order as one line."""
        return _line(asdict(self) | {"jobs": [_written(job) for job in self.jobs]})

    @classmethod
    def from_json(cls, line: bytes) -> "Order":
        """Read an order. Its configs were validated when they came in: only one that was changed since is again.

        Raises:
            ConfigError: a config is not valid.
        """
        values = json.loads(line)
        return cls(**values | {"jobs": tuple(_assignment(job) for job in values["jobs"])})


@dataclass(frozen=True)
class DropJob:
    """A request to go on without a job."""

    job_id: int
    save: bool
    """Write a checkpoint of it first."""

    def to_json(self) -> bytes:
        """Return the request as one line."""
        return _line(asdict(self))

    @classmethod
    def from_json(cls, line: bytes) -> "DropJob":
        """Read a request."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Started:
    """Subject, data and checkpoint are loaded; training goes on from here."""

    tokens_seen: int
    facts: dict[str, Any]
    """What was resolved at the start: sizes, learning rate, device, versions."""


@dataclass(frozen=True)
class Alive:
    """The trainer is at work; sent at least every few seconds."""

    tokens_seen: int
    tokens_per_second: float | None
    """None before there is enough of it to mean something."""
    phase: str = "training"


@dataclass(frozen=True)
class CurvePointMessage:
    """One point of the curve."""

    point: Point


@dataclass(frozen=True)
class Cached:
    """What an activation cache holds by now."""

    key: str
    uri: str
    subject: str
    """Name of the model; the sha256 of its weights is part of the key."""
    hook: str
    tokens_id: str
    bytes: int
    shards: int
    complete: bool
    """Whether it holds every context of the token file."""


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
class Left:
    """The trainer goes on without the job, as it was asked to."""

    tokens_seen: int


@dataclass(frozen=True)
class Idle:
    """The jobs are trained, and the process waits for an order to evaluate."""


@dataclass(frozen=True)
class Failure:
    """Why the trainer fails: one job, or all of its jobs."""

    kind: str
    message: str
    hint: str = ""
    code: int = Exit.INTERNAL
    """What the exit status would be, were the job alone."""
    shared_by: SharedBy = ""
    """Which other jobs would fail in the same way."""

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Return what an error means, and what to do about it."""
        code, hint = _classified(error)
        message = getattr(error, "message", "") or str(error) or repr(error)
        return cls(type(error).__name__, message, hint, code, getattr(error, "shared_by", ""))


@dataclass(frozen=True)
class Scored:
    """What an evaluation measured of its SAE: one metric family."""

    family: str
    scores: list[dict[str, Any]]
    """The fields of each `worker.evaluation.metric.Score`."""
    wall_seconds: float
    files_uri: str | None
    """Folder of what is kept beside the scores."""
    tokens: int
    """Positions measured on."""
    measured_on: str
    """The text, or the distribution."""


@dataclass(frozen=True)
class NotScored:
    """Why one metric family has no scores of this SAE."""

    family: str
    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation has tried every metric family it was asked for."""

    wall_seconds: float


Message = (
    Started | Alive | CurvePointMessage | CheckpointRef | Cached | Ended | Left | Failure
    | Scored | NotScored | Evaluated | LensPoint | LensResult | Idle
)  # fmt: skip


class Said(NamedTuple):
    """A message as it was received."""

    message: Message
    job_id: int | None
    """The job it is about; None: all jobs of the trainer."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_OF_DRIVERS = (
    "CUDA driver", "NVIDIA driver", "no CUDA-capable device", "CUDA-capable device(s) is/are busy", "No CUDA GPUs",
    "CUDA unknown error", "uncorrectable ECC", "cannot open shared object file",
)  # fmt: skip
"""Of a GPU that has gone, or of libraries of the system that do not load."""
_LOWER = "Lower training.batch_tokens, training.shuffle_tokens, sae.n_latents or data.context_length."
_KINDS: dict[str, type[Message]] = {
    "started": Started,
    "alive": Alive,
    "progress": CurvePointMessage,
    "checkpoint": CheckpointRef,
    "cache": Cached,
    "result": Ended,
    "left": Left,
    "error": Failure,
    "scored": Scored,
    "not_scored": NotScored,
    "evaluated": Evaluated,
    "lens_point": LensPoint,
    "lens": LensResult,
    "idle": Idle,
}


def encode(message: Message, job_id: int | None = None) -> bytes:
    """Return a message as one JSON line; floats keep every bit."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(message, cls))
    if isinstance(message, CurvePointMessage):  # what is None is left out: the version before knows all the others
        values = {name: value for name, value in message.point._asdict().items() if value is not None}
    else:
        values = asdict(message)
    return _line({"type": kind, "job": job_id} | values)


def decode(line: bytes) -> Said | None:
    """Read a message; None for a line that is not one.

    Fields that are not known are left out: after an upgrade a worker that is still at work starts a newer trainer.
    """
    try:
        values = json.loads(line)
        cls, job_id = _KINDS[values.pop("type")], values.pop("job")
        names = Point._fields if cls is CurvePointMessage else cls.__dataclass_fields__
        known = {name: value for name, value in values.items() if name in names}
        return Said(CurvePointMessage(point_of(known)) if cls is CurvePointMessage else cls(**known), job_id)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def describe(message: Message) -> str:
    """Return a message in words, for a log."""
    match message:
        case Started(tokens_seen, facts):
            threads = named(facts["threads"], "thread") if "threads" in facts else "? threads"
            where = f"{facts.get('device', 'cpu')}, {threads}"
            if "logit_lens_kls" in facts:
                return f"training a lens from {tokens_seen:,} tokens on {where}"
            if "n_latents" not in facts:
                return f"evaluating on {where}"
            sizes = ", ".join(f"{name} {facts[name]}" for name in ("n_latents", "k", "d_model") if name in facts)
            sizes += f", lr {facts['lr']:.4g}" if facts.get("lr") is not None else ""
            return f"training from {tokens_seen:,} tokens on {where}: {sizes}"
        case Alive(tokens_seen, rate, phase):
            return f"{phase}: {tokens_seen:,} tokens" + (f", {rate:,.0f}/s" if rate is not None else "")
        case CurvePointMessage(point):
            # Of no dead latents, this cannot tell whether one could be.
            dead = f"  dead {point.dead_share:.1%}" if point.dead_share > 0 else ""
            return f"{point.tokens_seen:>13,} tokens  fvu {point.fvu:.4f}  l0 {point.l0:.1f}{dead}"
        case CheckpointRef(uri, tokens_seen):
            return f"checkpoint at {tokens_seen:,} tokens: {uri}"
        case Cached(_, uri, _, hook, _, n_bytes, shards, complete):
            suffix = ", complete" if complete else ""
            return f"{n_bytes:,} bytes of {hook}, {named(shards, 'shard')}{suffix}: {uri}"
        case Ended(outcome, tokens_seen):
            return f"{outcome} after {tokens_seen:,} tokens"
        case Left(tokens_seen):
            return f"left at {tokens_seen:,} tokens"
        case Scored(family, scores, seconds):
            return f"{family}: {named(len(scores), 'score')} in {seconds:.1f} s"
        case NotScored(family, kind, text):
            return f"{family}: {kind}: {text}"
        case LensPoint(tokens_seen, kl):
            return f"{tokens_seen:>13,} tokens  kl {kl:.4g}"
        case LensResult(outcome, tokens_seen):
            return f"{outcome} after {tokens_seen:,} tokens"
        case Evaluated(seconds):
            return f"evaluated in {seconds:.1f} s"
        case Idle():
            return "waits for an order to evaluate"
        case Failure(kind, text, hint):
            return f"{kind}: {text}" + (f" ({hint})" if hint else "")


def _classified(error: Exception) -> tuple[Exit, str]:
    hint = getattr(error, "hint", "")
    if is_of_machine(error) or _is_of_driver(error):
        return Exit.MACHINE, hint
    if isinstance(error, ConfigError | SubjectError):
        return Exit.BAD_CONFIG, hint
    is_memory = isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)):
        return Exit.OUT_OF_MEMORY, hint or _LOWER
    return Exit.INTERNAL, hint


def _is_of_driver(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError | ImportError) and any(words in text for words in _OF_DRIVERS)


def _written(job: Assignment) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in ("job_id", "attempt", "artifacts", "subject_dtype")}
    config = {"config": json.loads(job.config.canonical_json()), "config_id": job.config.config_id}
    return values | config | {"resume": [asdict(ref) for ref in job.resume]}


def _assignment(values: dict[str, Any]) -> Assignment:
    resume = tuple(CheckpointRef(**ref) for ref in values["resume"])
    # A supervisor that was started before an upgrade sends no id: its config is validated.
    config = read_stored(canonical_text(values["config"]), values.pop("config_id", ""))
    return Assignment(**values | {"config": config, "resume": resume})


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
