"""The queue as a plain model: what every verb must do to a job, in a few lines without a database."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.queue import Claim, Lease

MAX_FAILURES = 2
MOST_LOST = 3
LEASE_SECONDS, GRACE_SECONDS, BACKOFF_SECONDS = 600, 50, 30
"""Time passes in hundreds of seconds, so that no deadline is nearer than 20 s and a slow machine changes nothing."""
FREED = {"failed", "cancelled"}


@dataclass
class Expected:
    """One job as the model has it; times are seconds of the model's clock."""

    config: int
    """Of an evaluation or a lens below 0: no training has its place."""
    priority: int = 0
    replica: int = 0
    state: str = "queued"
    desired: str = "run"
    attempt: int = 0
    failures: int = 0
    preemptions: int = 0
    lost: int = 0
    ready_at: int = 0
    expires_at: int = 0
    owner: Lease | None = None
    outcome: str | None = None
    """Of its result."""
    budget: int = 20_000_000
    sweep: str = "s"
    stream: str = ""
    max_failures: int = MAX_FAILURES
    kind: str = "train"
    families: dict[str, str] = field(default_factory=dict)
    """Of an evaluation: what became of its metric families, measured or failed."""
    curve: set[int] = field(default_factory=set)
    checkpoints: set[tuple[int, int]] = field(default_factory=set)
    """(tokens, attempt)"""

    @property
    def cursor(self) -> int:
        return max((tokens for tokens, _ in self.checkpoints), default=0)

    @property
    def is_alone(self) -> bool:
        """Say whether it must not share a trainer: it may be poison."""
        return bool(self.failures or self.lost > 1)

    def start(self, token: str, job_id: int, now: int) -> Lease:
        self.state, self.attempt, self.expires_at = "running", self.attempt + 1, now + LEASE_SECONDS
        self.owner = Lease(job_id, self.attempt, token)
        return self.owner

    def begin(self, tokens: int) -> None:
        self.curve = {at for at in self.curve if at <= tokens}
        self.checkpoints = {(at, attempt) for at, attempt in self.checkpoints if at <= tokens}

    def finish(self, outcome: str) -> None:
        self.state, self.desired, self.owner, self.lost, self.outcome = "succeeded", "run", None, 0, outcome

    def measure(self, family: str) -> bool:
        """Measure a family; return whether it was not measured before."""
        is_new = self.families.get(family) != "measured"
        if is_new:
            self.families[family], self.lost = "measured", 0
        return is_new

    def miss(self, family: str) -> None:
        if self.families.get(family) != "measured":
            self.families[family] = "failed"

    def finish_evaluation(self, wanted: Sequence[str]) -> None:
        if all(self.families.get(family) == "measured" for family in wanted):
            self.finish("evaluated")
        else:
            self.failures += 1
            self._land("failed")

    def fail(self, now: int, *, retry: bool) -> None:
        self.failures += 1
        self._land("queued" if retry and self.failures < self.max_failures else "failed")
        self.ready_at = now + (BACKOFF_SECONDS * 2 ** (self.failures - 1) if self.state == "queued" else 0)

    def release(self, now: int) -> None:
        self._land("queued")
        self.preemptions += self.state == "queued"
        self.ready_at = now

    def expire(self, now: int) -> None:
        self.lost += 1
        self._land("failed" if self.lost >= MOST_LOST else "queued")
        self.ready_at = now + (BACKOFF_SECONDS * 2 ** (self.lost - 2) if self.lost > 1 else 0)

    def cancel(self) -> bool:
        """Cancel it; return whether that was allowed."""
        if self.state == "running":
            self.desired = "cancel"
        elif self.state in {"queued", "paused"}:
            self.state = "cancelled"
        return self.state in {"running", "cancelled"}

    def pause(self) -> bool:
        if self.state == "running" and self.desired != "cancel":
            self.desired = "pause"
        elif self.state == "queued":
            self.state = "paused"
        return self.state == "paused" or (self.state == "running" and self.desired != "cancel")

    def resume(self, now: int) -> bool:
        if self.state == "running" and self.desired == "pause":
            self.desired = "run"
        elif self.state == "paused":
            self.state, self.ready_at = "queued", now
        return self.state == "queued" or (self.state == "running" and self.desired != "cancel")

    def retry(self, now: int, *, is_replaced: bool) -> bool:
        if self.state in FREED and not is_replaced:
            self.state, self.ready_at = "queued", now
            self.failures = self.preemptions = self.lost = 0
        return self.state == "queued"

    def extend(self, now: int) -> bool:
        """Double its budget; return whether that was allowed."""
        is_open = self.state in {"queued", "paused"}
        if self.kind != "train":
            return False
        if not is_open and not (self.state == "succeeded" and self.outcome == "max_tokens" and self.checkpoints):
            return False
        if not is_open:
            self.state, self.ready_at, self.outcome = "queued", now, None
        self.failures = self.preemptions = self.lost = 0
        self.budget *= 2
        return True

    def _land(self, otherwise: str) -> None:
        """End an attempt as the wish has it, else as said."""
        by_wish = {"cancel": "cancelled", "pause": "paused" if otherwise == "queued" else otherwise}
        self.state, self.desired, self.owner = by_wish.get(self.desired, otherwise), "run", None


@dataclass
class Model:
    """The whole queue: one sweep, those of evaluations and of lenses, and their clock."""

    max_parallel: int | None
    """Of the sweep; the others have none."""
    jobs: dict[int, Expected] = field(default_factory=dict)
    now: int = 0

    def holds(self, config: int) -> bool:
        """Say whether the sweep has a live job of a config."""
        return any(job.config == config and job.state not in FREED for job in self.jobs.values())

    def is_replaced(self, job_id: int) -> bool:
        """Say whether another live job has taken a job's place."""
        mine = self.jobs[job_id]
        return any(
            (job.config, job.replica) == (mine.config, mine.replica) and job.state not in FREED
            for other, job in self.jobs.items()
            if other != job_id
        )

    def waiting(self) -> list[int]:
        """Return the jobs that may run, in the order in which they will."""
        running = sum(job.state == "running" and job.sweep == "s" for job in self.jobs.values())
        is_full = self.max_parallel is not None and running >= self.max_parallel
        ready = [i for i, job in self.jobs.items() if job.state == "queued" and job.ready_at <= self.now]
        allowed = [i for i in ready if not (is_full and self.jobs[i].sweep == "s")]
        return sorted(allowed, key=lambda i: (-self.jobs[i].priority, i))

    def companions(self, leader: Claim) -> list[int]:
        """Return those of them that may join a leader."""
        return [
            job_id
            for job_id in self.waiting()
            if (job := self.jobs[job_id]).cursor == leader.cursor
            and not job.is_alone
            and job.stream == leader.stream_key
        ]

    def expired(self) -> list[int]:
        return [i for i, job in sorted(self.jobs.items()) if job.owner and job.expires_at < self.now - GRACE_SECONDS]

    def owners(self) -> set[Lease]:
        return {job.owner for job in self.jobs.values() if job.owner}
