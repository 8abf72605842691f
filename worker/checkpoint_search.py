"""Find the checkpoint that a job goes on from: the newest that can be read, whatever the database knows of them."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import CheckpointError, CheckpointsElsewhere
from orchestrator.formatting import named

_State = TypeVar("_State")
_log = logging.getLogger(__name__)


def newest_readable(uris: Iterable[str], *, folder: Path, load: Callable[[str], _State]) -> tuple[str, _State] | None:
    """Return the newest checkpoint of a job that `load` can read, with its uri; None if none can.

    `uris` are those that were recorded; every other one in `folder`, the job's, counts as well where `load` accepts it:
    a database that was brought back from a copy knows none of the later ones. One outside is not read.

    Raises:
        CheckpointsElsewhere: of those recorded not even a folder is there: starting over would lose the work.
    """
    recorded = [Path(uri) for uri in uris]
    found = {path for path in folder.glob("*/*") if path.name.isdecimal() and path.parent.name.isdecimal()}
    inside = {path for path in found.union(recorded) if path.resolve().is_relative_to(folder.resolve())}
    if recorded and not any(path.parent.exists() for path in inside):
        raise CheckpointsElsewhere(
            f"none of {named(len(recorded), 'checkpoint')} is there, nor the folder of any, such as"
            f" {recorded[0].parent}",
            hint="Is the folder of artifacts (ORCH_ARTIFACTS, else ORCH_HOME) mounted, and shared by every worker "
            "under the path it had when this job began?",
        )
    for path in sorted(inside, key=_age, reverse=True):
        try:
            return str(path), load(str(path))
        except CheckpointError as error:
            _log.warning("passed over a checkpoint: %s", error.message)
    return None


def _age(path: Path) -> tuple[int, int]:
    """Return the tokens of a checkpoint and its attempt."""
    tokens, attempt = path.name, path.parent.name
    return int(tokens) if tokens.isdecimal() else 0, int(attempt) if attempt.isdecimal() else 0
