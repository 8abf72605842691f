"""Every error raised on purpose, split by what the catcher should do.

OrchError                     exit 1   anything of ours
├── ConfigError(ValueError)   exit 2   the person corrects the file or the flag
├── NotFound(LookupError)     exit 3   the person names something else
├── StateError                exit 4   the action is not allowed now, or the lease has gone to another worker
├── FitError                  exit 4   a fit lacks jobs: the message names them
├── WaitTimedOut              exit 6   jobs that are waited for had not ended in time
├── JobFailed                 exit 7   a job that was waited for failed
├── JobCancelled              exit 8   a job that was waited for was cancelled
├── MachineError              exit 5   this machine's fault, and no job's: try elsewhere, or later (retry = True)
│   └── StorageError          exit 5   database, broker or disk
│       └── CheckpointsElsewhere  exit 5   a job's checkpoints are not to be seen here
├── SubjectError              exit 1   the language model or its text cannot be used
├── TrainingError             exit 1   the trainer failed
│   ├── Diverged              exit 1   a result, not a crash
│   └── OutOfMemory           exit 1   the message says what to lower
└── CheckpointError           exit 1   a checkpoint is missing, damaged or of another config

A class's docstring is its default message.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

SharedBy = Literal["", "place", "stream"]
"""Which other jobs an error is of: none; those that read the same stream at the same place; all of the stream."""


class OrchError(Exception):
    """Something went wrong."""

    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False
    shared_by: SharedBy = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        """Take what was wrong and where (`message`), and what to do next (`hint`)."""
        self.message = message or (self.__doc__ or "").strip()
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message, with the hint on a line of its own."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(OrchError, ValueError):
    """A setting or a config is not valid."""

    exit_code = 2


class NotFound(OrchError, LookupError):
    """There is nothing of that name."""

    exit_code = 3


class StateError(OrchError):
    """That action is not allowed in this state."""

    exit_code = 4


class MachineError(OrchError):
    """A machine, or a server it needs, cannot do its work at the moment."""

    exit_code = 5
    retry = True


class StorageError(MachineError):
    """The database, the broker or the disk did not answer."""


class CheckpointsElsewhere(StorageError):
    """The checkpoints of this job, or the SAE it evaluates, are not to be seen from this machine."""


class FitError(OrchError):
    """There are too few jobs for this fit."""

    exit_code = 4


class WaitTimedOut(OrchError):
    """Jobs had not ended in time."""

    exit_code = 6


class JobFailed(OrchError):
    """A job failed."""

    exit_code = 7


class JobCancelled(OrchError):
    """A job was cancelled."""

    exit_code = 8


class SubjectError(OrchError):
    """The subject or its text cannot be used."""


class TrainingError(OrchError):
    """Training failed."""


class Diverged(TrainingError):
    """The loss is not finite, or rose far above its best."""


class OutOfMemory(TrainingError):
    """The device has too little memory for this job."""


class CheckpointError(OrchError):
    """The checkpoint cannot be read."""


_OF_A_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EPERM", "ESTALE", "ENODEV", "ENXIO", "ENOMEM", "EAGAIN",
        "EMFILE", "ENFILE", "ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ETIMEDOUT", "ENETDOWN",
        "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Of a disk, a mount, a limit or a network: what the system says of a machine."""
_OF_A_NETWORK = frozenset(
    {"ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "gaierror", "TimeoutException", "ConnectError"}
)
"""Names of the classes of libraries that are loaded where they are used alone."""


def is_of_machine(error: BaseException) -> bool:
    """Say whether an error, or one that it was raised for, is the machine's: then no job is to pay for it."""
    return any(
        isinstance(one, MachineError | ConnectionError | TimeoutError)
        or (isinstance(one, OSError) and one.errno in _OF_A_MACHINE)
        or not _OF_A_NETWORK.isdisjoint(kind.__name__ for kind in type(one).__mro__)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def shared_error(shared_by: SharedBy) -> Iterator[None]:
    """Mark what is raised here about a config, its model or its text as an error of all jobs that read the same.

    Only what any machine would find: not that a file, a package or the network is missing on this one.
    """
    try:
        yield
    except (ConfigError, SubjectError) as error:
        error.shared_by = error.shared_by or shared_by
        raise
