"""The trainer that has trained its jobs and waits to evaluate them: at most one, for as long as claims follow."""

from pathlib import Path

from worker.evaluation_order import EvaluationOrder
from worker.protocol import Exit
from worker.supervisor.trainer_process import AnyOrder, TrainerProcess


class IdleProcess:
    """What it has loaded, an evaluation need not load again; no other order is handed to a process that had one."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._process: TrainerProcess | None = None
        self._threads = 0

    def keep(self, process: TrainerProcess, threads: int) -> int:
        """Hold a process that is idle, and that was started with so many threads; return the status of its order."""
        self.end()
        self._process, self._threads = process, threads
        return Exit.DONE

    def start(self, order: AnyOrder, *, log: Path) -> TrainerProcess:
        """Hand an order to the process that is held, if it may have it, else to a new one; none is held any more."""
        process = self._process
        if process is None or not isinstance(order, EvaluationOrder) or not self._may_have(order):
            self.end()
            return TrainerProcess(order, log=log)
        self._process = None
        process.evaluate(order, log=log)
        return process

    def _may_have(self, order: EvaluationOrder) -> bool:
        brings_code = any(job.config.subject.trust_remote_code for job in order.jobs)
        return order.threads == self._threads and not brings_code

    def end(self) -> None:
        """End the process that is held."""
        if self._process is not None:
            self._process.close()
        self._process = None
