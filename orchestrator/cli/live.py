"""A picture in the terminal that is redrawn in place."""

import os
import shutil
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import click

MIN_SECONDS = 0.5
"""No picture is drawn more often than this."""


class Canvas:
    """The terminal's lower lines; the last picture stays when the canvas closes."""

    def __init__(self) -> None:
        """Prepare; nothing is drawn yet."""
        from rich.console import Console
        from rich.live import Live

        ctx = click.get_current_context(silent=True)
        self._console = Console(no_color=True if ctx is not None and ctx.color is False else None, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        """Hide the cursor."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the cursor back."""
        self._live.stop()

    @property
    def size(self) -> os.terminal_size:
        """Return the columns and lines there are now."""
        return shutil.get_terminal_size()

    def draw(self, lines: Sequence[str]) -> None:
        """Draw lines over what was drawn before."""
        from rich.text import Text

        self._live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
