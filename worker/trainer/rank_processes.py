"""The processes of a trainer on its further devices: start, watch and end them; run as a module it is one of them."""

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
from orchestrator.loading.rare_collections import rare_collections
from worker import log_stream
from worker.channel import die_with_parent
from worker.protocol import Exit, Failure

# torch takes seconds to load: it is imported where it is used, once the other processes have been started.
if TYPE_CHECKING:
    from torch import Tensor

    from worker.sae.train_state import TrainState
    from worker.trainer.distributed import Leader

_END_SECONDS = 10.0


class RankProcess(NamedTuple):
    """The process of one rank, and its device."""

    child: "subprocess.Popen[bytes]"
    device: str


class RankProcesses:
    """The processes that hold the other parts of a training's state; they end when this trainer does."""

    def __init__(self, devices: Sequence[str], *, threads: int, on_failure: Callable[[Failure], None]) -> None:
        """Start a process for every device but the first; `on_failure` is called if one ends too early."""
        self.devices, self._on_failure = devices, on_failure
        self._leader: Leader | None = None
        self._is_over = False
        self._store = _rendezvous_file()
        self._ranks = [self._start(rank, device, threads) for rank, device in enumerate(devices) if rank > 0]
        for rank in self._ranks:
            threading.Thread(target=self._watch, args=(rank,), name=f"watch-{rank.device}", daemon=True).start()

    def divide(self, whole: "TrainState", config: JobConfig, *, heldout: "Tensor") -> "TrainState":
        """Divide a state among all processes; the returned one is trained and saved like any other. Once only.

        Raises:
            ConfigError: it cannot be divided.
        """
        from worker.trainer.distributed import Leader, join

        join(self._store, rank=0, size=len(self.devices), device=self.devices[0])
        self._leader = Leader(whole, config=config, heldout=heldout, device=self.devices[0])
        return self._leader.state

    def end(self) -> None:
        """Tell the processes to end, and wait until they have; kill those that do not."""
        self._is_over = True
        has_told_them = False
        if self._leader is not None:
            with suppress(TrainingError):  # one has ended, or waits for the rest of a step that failed here
                self._leader.end(timeout=_END_SECONDS)
                has_told_them = True
        for rank in self._ranks:
            try:
                rank.child.wait(_END_SECONDS if has_told_them else 0)
            except subprocess.TimeoutExpired:
                rank.child.kill()
                rank.child.wait()
        if sys.platform != "linux":
            shutil.rmtree(self._store.parent, ignore_errors=True)

    def _start(self, rank: int, device: str, threads: int) -> RankProcess:
        command = (str(self._store), str(rank), str(len(self.devices)), device, str(threads))
        # What it prints goes to our own log. Its input is a pipe that nothing is written to: it ends when that closes.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.trainer.rank_processes", *command],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
        )
        return RankProcess(child, device)

    def _watch(self, rank: RankProcess) -> None:
        status = rank.child.wait()
        if self._is_over:
            return
        message = f"the process on {rank.device} ended with exit status {status}"
        code = status if status in set(Exit) and status != Exit.DONE else Exit.INTERNAL
        self._on_failure(Failure("TrainingError", message, "What it printed is in the trainer's log.", code))


def _rendezvous_file() -> Path:
    """Return a new file for torch.distributed to meet at. NCCL reads it to the end: it must not be unlinked before.

    On Linux it has no name but this process's descriptor, and ends with this process, however that ends.
    """
    if sys.platform == "linux":
        return Path(f"/proc/{os.getpid()}/fd/{os.memfd_create('orch-ranks')}")
    return Path(mkdtemp(prefix="orch-ranks-")) / "store"


def main(arguments: Sequence[str]) -> int:
    """Take the same steps as the trainer on the first device until it says to end; return the exit status."""
    store, rank, size, device, threads = arguments
    die_with_parent()
    threading.Thread(target=_end_with_leader, name="leader-watch", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process gets them too, and says when to end
        signal.signal(number, signal.SIG_IGN)
    with rare_collections():
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
    log_stream.install()
    try:
        status = main(sys.argv[1:])
    except (RuntimeError, MemoryError) as error:  # the exit status says whether it was memory
        traceback.print_exc()
        status = Failure.of(error).code
    sys.stderr.flush()
    os._exit(status)
