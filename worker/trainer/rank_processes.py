"""The other processes of a trainer that computes on several devices; run as a module it is one of them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.config.job import JobConfig
from orchestrator.errors import TrainingError
from worker.protocol import Exit, Failure
from worker.trainer.channel import die_with_parent

# torch takes seconds to load: it is imported where it is used, once the other processes have been started.
if TYPE_CHECKING:
    from torch import Tensor

    from worker.sae.train_state import TrainState
    from worker.trainer.distributed import Leader

_END_SECONDS = 10.0


class RankProcess(NamedTuple):
    """A started process and its device."""

    child: "subprocess.Popen[bytes]"
    device: str


class RankProcesses:
    """The processes that hold the other parts of a trainee: started early, and gone when this trainer is."""

    def __init__(self, devices: Sequence[str], *, threads: int, failed: Callable[[Failure], None]) -> None:
        """Start a process for every device but the first; `failed` is called if one ends too early."""
        self.devices, self._failed = devices, failed
        self._leader: Leader | None = None
        self._is_over = False
        self._store = _store()
        self._all = [self._start(rank, device, threads) for rank, device in enumerate(devices) if rank]
        for partner in self._all:
            threading.Thread(target=self._watch, args=(partner,), name=f"watch-{partner.device}", daemon=True).start()

    def divide(self, whole: "TrainState", config: JobConfig, *, heldout: "Tensor") -> "TrainState":
        """Deal a trainee out to all processes; what is returned is trained and saved like any other. Once only.

        Raises:
            ConfigError: it cannot be divided.
        """
        from worker.trainer.distributed import Leader, join

        join(self._store, rank=0, size=len(self.devices), device=self.devices[0])
        self._leader = Leader(whole, config=config, heldout=heldout, device=self.devices[0])
        return self._leader.trainee

    def end(self) -> None:
        """Let the processes go, and wait until they have gone."""
        self._is_over = True
        were_told = False
        if self._leader is not None:
            with suppress(TrainingError):  # one is gone, or waits for the rest of a step that failed here
                self._leader.end(patience=_END_SECONDS)
                were_told = True
        for partner in self._all:
            try:
                partner.child.wait(_END_SECONDS if were_told else 0)
            except subprocess.TimeoutExpired:
                partner.child.kill()
                partner.child.wait()
        if sys.platform != "linux":
            shutil.rmtree(self._store.parent, ignore_errors=True)

    def _start(self, rank: int, device: str, threads: int) -> RankProcess:
        command = (str(self._store), str(rank), str(len(self.devices)), device, str(threads))
        # What it prints goes where our own log goes. Its input is a pipe that nothing is written to: it ends with us.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.trainer.rank_processes", *command],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
        )
        return RankProcess(child, device)

    def _watch(self, partner: RankProcess) -> None:
        status = partner.child.wait()
        if self._is_over:
            return
        told = f"the process on {partner.device} ended with exit status {status}"
        code = status if status in set(Exit) and status != Exit.DONE else Exit.INTERNAL
        self._failed(Failure("TrainingError", told, "Its words are in the trainer's log.", code))


def _store() -> Path:
    """Return a new file to meet at. NCCL looks into it to the end: it cannot be unlinked once all have met.

    On Linux it has no name but this process's descriptor, and goes with this process, however that ends.
    """
    if sys.platform == "linux":
        return Path(f"/proc/{os.getpid()}/fd/{os.memfd_create('orch-partners')}")
    return Path(mkdtemp(prefix="orch-partners-")) / "store"


def main(arguments: Sequence[str]) -> int:
    """Follow a trainer until it lets us go; return the exit status."""
    store, rank, size, device, threads = arguments
    die_with_parent()
    threading.Thread(target=_end_with_leader, name="leader-watch", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):  # the leader is told, and says when to end
        signal.signal(number, signal.SIG_IGN)
    import torch

    from worker.trainer.distributed import follow, join

    torch.set_num_threads(int(threads))
    join(Path(store), rank=int(rank), size=int(size), device=device)
    follow(device)
    return Exit.DONE


def _end_with_leader() -> None:
    while os.read(0, 1 << 10):
        pass
    os._exit(Exit.YIELDED)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except (RuntimeError, MemoryError) as error:  # the leader shall hear whether it was memory
        traceback.print_exc()
        status = Failure.of(error).code
    sys.stderr.flush()
    os._exit(status)
