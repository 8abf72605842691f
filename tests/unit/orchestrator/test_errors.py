"""The error tree answers what its catchers ask."""

import pytest

from orchestrator import errors
from orchestrator.errors import OrchError

CODES = {
    "OrchError": 1,
    "ConfigError": 2,
    "NotFound": 3,
    "StateError": 4,
    "MachineError": 5,
    "StorageError": 5,
    "CheckpointsElsewhere": 5,
    "FitError": 4,
    "SubjectError": 1,
    "TrainingError": 1,
    "Diverged": 1,
    "OutOfMemory": 1,
    "CheckpointError": 1,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    error = getattr(errors, name)
    assert issubclass(error, OrchError)
    assert error.exit_code == code
    assert error.retry is (code == 5)


def test_message_and_hint() -> None:
    error = errors.NotFound("there is no job 7", hint="See: orch status")
    assert (error.message, error.hint) == ("there is no job 7", "See: orch status")
    assert str(error) == "there is no job 7\nSee: orch status"
    assert str(errors.NotFound("there is no job 7")) == "there is no job 7"


def test_the_docstring_is_the_default_message() -> None:
    assert str(errors.StorageError()) == errors.StorageError.__doc__
    assert str(errors.StorageError(hint="later")).endswith("\nlater")


@pytest.mark.parametrize(
    ("name", "other"),
    [("ConfigError", ValueError), ("NotFound", LookupError), ("Diverged", errors.TrainingError)],
)
def test_python_catches_them_by_its_own_names(name: str, other: type[Exception]) -> None:
    with pytest.raises(other):
        raise getattr(errors, name)("x")
