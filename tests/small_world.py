"""A whole small world for end-to-end tests: a random GPT-2, a text, a data folder, real workers in processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import Engine, select

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import is_synthetic
from orchestrator.config.validation import parse
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, CheckpointRow, CurvePoint, Job, ResultRow, Table
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings, load
from orchestrator.sweep.sweep import Limits, Sweep

Row = TypeVar("Row", bound=Table)
ROOT = Path(__file__).parents[1]
WIDTH, CONTEXT = 32, 32
SYNTHETIC = Path(f"synthetic:gaussian?d_model={WIDTH}")
"""A subject for tests that are not about models: its trainers start in half the time, without transformers."""
COUNTING = {"module": "tests.faults.crashing", "ORCH_TRAINER": "tests.faults.quick"}
"""For `World.work`: its trainers only count, without torch. For tests of the worker, its database and its servers."""
LONG = 512 * 1024
"""Tokens of a job that is disturbed in the middle: some seconds, also on a fast machine."""
ENDLESS = 2**26
"""Tokens of a job that a test stops."""
TEXT = "the quick brown fox jumps over the lazy dog while seven wizards judge my vow of black quartz"
WORDS = TEXT.split()
QUICK = {
    "heartbeat_seconds": 0.3, "lease_seconds": 6, "grace_seconds": 0.5, "reconcile_seconds": 0.3, "poll_seconds": 0.1,
    "checkpoint_seconds": 0.2, "terminate_seconds": 30,
}  # fmt: skip


def make_subject(folder: Path) -> Path:
    """Write a GPT-2 of random weights, with a word tokenizer and a text to read."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["</s>", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    ids = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 0}
    shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
    described: Any = GPT2Config
    GPT2LMHeadModel(described(**shape, **ids)).save_pretrained(folder)
    order = torch.randint(len(WORDS), (12_000,), generator=torch.Generator().manual_seed(1)).tolist()
    lines = [" ".join(WORDS[i] for i in order[start : start + 50]) for start in range(0, len(order), 50)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    return folder


def small_config(
    subject: Path, *, max_tokens: int = 16_384, n_latents: int = 64, seed: int = 0, **stop: Any
) -> JobConfig:
    """Return a job that reads a subject written here, or a synthetic one, as `SYNTHETIC`."""
    reads: dict[str, Any] = {"subject": {"model": str(subject)}}
    if not is_synthetic(str(subject)):
        reads = {
            "subject": {"model": str(subject), "layer": 1},
            "data": {"source": str(subject / "text.txt"), "context_length": CONTEXT},
        }
    return parse(
        reads
        | {
            "sae": {"n_latents": n_latents, "k": 4},
            "optimizer": {"ema": 0.9},
            "training": {
                "batch_tokens": 64, "shuffle_tokens": 1024, "heldout_tokens": 512, "max_tokens": max_tokens,
                "first_point_tokens": 1024, "dead_after_tokens": 4096, "seed": seed,
            },
            "stop": {"rule": "max_tokens"} | stop,
        }
    )  # fmt: skip


class World:
    """A data folder with its database, and the workers a test starts."""

    def __init__(self, home: Path, **settings: Any) -> None:
        home.mkdir(parents=True, exist_ok=True)
        _share_kernels(home)
        self.environ = {f"ORCH_{name.upper()}": str(value) for name, value in (QUICK | settings).items()}
        self.environ |= {"ORCH_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.settings: Settings = load(start=home.parent, environ=self.environ)
        self.engine: Engine = open_database(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = home / "workers.log"

    def enqueue(self, *configs: JobConfig, name: str = "small", **limits: Any) -> list[int]:
        done = queue.enqueue(self.engine, Sweep(name, configs, limits=Limits(**limits)))
        return [job_id for job_id in done.job_ids if job_id is not None]

    def work(self, *arguments: str, module: str = "worker", **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker, or a module that is one with a fault, with further environment variables."""
        return self.start("--threads", "1", "--device", "cpu", *arguments, module=module, **variables)

    def start(self, *arguments: str, module: str = "worker", **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker, or workers, with these arguments alone."""
        command = [sys.executable, "-m", module, *arguments]
        # The workers of a test write no MLflow store of their own: that takes seconds, and has its own tests.
        environ = {**os.environ, "ORCH_TRACKING_URL": "http://127.0.0.1:1", **self.environ, **variables}
        with self.log.open("ab") as log:
            worker = subprocess.Popen(command, env=environ, stderr=log, stdout=log, cwd=ROOT)
        self.workers.append(worker)
        return worker

    def job(self, job_id: int) -> Job:
        return self.one(Job, id=job_id)

    def result(self, job_id: int) -> ResultRow:
        return self.one(ResultRow, job_id=job_id)

    def last_attempt(self, job_id: int) -> Attempt:
        return self.one(Attempt, job_id=job_id, attempt=self.job(job_id).attempt)

    def one(self, table: type[Row], **where: Any) -> Row:
        with reading(self.engine) as session:
            row = session.scalars(select(table).filter_by(**where)).one()
            session.expunge_all()
        return row

    def rows(self, query: Any) -> Sequence[Any]:
        with reading(self.engine) as session:
            return session.execute(query).all()

    def attempts(self, job_id: int) -> list[tuple[str | None, int | None]]:
        """Return (outcome, tokens_start) of each attempt."""
        query = select(Attempt.outcome, Attempt.tokens_start).filter_by(job_id=job_id).order_by(Attempt.attempt)
        return [tuple(row) for row in self.rows(query)]

    def curve(self, job_id: int, *, with_subject: bool = True) -> list[tuple[float, ...]]:
        """Return the stored curve, every bit of it, but for who measured it and how long that took.

        Without the subject's part of the cost it does not depend on what was shared either.
        """
        left_out = {"job_id", "attempt", "wall_seconds"} | (set() if with_subject else {"flops_subject"})
        columns = [column for column in CurvePoint.__table__.columns if column.name not in left_out]
        query = select(*columns).where(CurvePoint.job_id == job_id).order_by(CurvePoint.tokens_seen)
        return [tuple(row) for row in self.rows(query)]

    def has_checkpoint(self, job_id: int, attempt: int) -> bool:
        return bool(self.rows(select(CheckpointRow.tokens_seen).filter_by(job_id=job_id, attempt=attempt)))

    def is_in_training(self, job_id: int, attempt: int) -> bool:
        """Say whether an attempt has measured something and saved it, and still runs."""
        measured = select(CurvePoint.tokens_seen).filter_by(job_id=job_id, attempt=attempt)
        ready = bool(self.rows(measured)) and self.has_checkpoint(job_id, attempt)
        job = self.job(job_id)
        assert job.attempt < attempt or job.state == "running" or not ready, "too late: the job is no longer running"
        return ready and job.attempt == attempt

    def wait(self, what: Callable[[], object], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; workers said:\n{self.said()}"
            time.sleep(0.03)

    def wait_state(self, job_id: int, state: str) -> None:
        self.wait(lambda: self.job(job_id).state == state)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def close(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()
        self.engine.dispose()


def _share_kernels(home: Path) -> None:
    """Take compiled kernels from where all tests of this process keep them: compiling takes seconds."""
    shared, own = os.environ.get("ORCH_TEST_KERNELS"), home / "compile" / "kernels"
    if shared and not own.is_symlink():
        own.parent.mkdir(exist_ok=True)
        own.symlink_to(shared)


@contextmanager
def small_world(home: Path, **settings: Any) -> Iterator[World]:
    """Open a world, and leave no process of it behind."""
    world = World(home, **settings)
    try:
        yield world
    finally:
        world.close()


def trainers(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the trainers of a worker."""
    return [process for process in psutil.Process(worker.pid).children() if _is_trainer(process)]


def _is_trainer(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it may just have ended
        return bool(re.search(r"worker\.trainer|tests\.faults", " ".join(process.cmdline())))
    return False


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended; a zombie has."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
