"""What one check found."""

from typing import Literal, NamedTuple

Level = Literal["OK", "WARN", "FAIL"]


class Finding(NamedTuple):
    """What one check found."""

    level: Level
    name: str
    text: str
    hint: str = ""
    """What to do next."""
