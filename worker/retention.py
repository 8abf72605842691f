"""Which checkpoints of an attempt are kept: those the database knows, and whatever is newer."""

import shutil
from contextlib import suppress
from pathlib import Path


def prune(folder: Path, *, older_than: int) -> None:
    """Delete the checkpoints of fewer tokens.

    `older_than` is the last but one that the database has acknowledged: a trainer that saves through an outage of the
    database must not lose the pair that a successor will be handed.
    """
    if folder.is_dir():
        old = [path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) < older_than]
        for path in old:
            # Out of the way first: whoever is killed here leaves no half of a checkpoint under its name.
            leaving = path.with_name(f".{path.name}.partial")
            with suppress(OSError):
                path.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)
