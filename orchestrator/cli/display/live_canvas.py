"""Lines on a terminal that are redrawn in place, and the keys pressed meanwhile."""

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import click

from orchestrator.cli import terminal

MIN_SECONDS = 0.5
"""Seconds between two drawings, at least."""


class LiveCanvas:
    """The lowest lines of the terminal; what was drawn last stays when the canvas closes."""

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
        """Show the cursor again."""
        self._live.stop()

    @property
    def size(self) -> os.terminal_size:
        """Return the columns and lines there are now."""
        return shutil.get_terminal_size()

    def draw(self, lines: Sequence[str]) -> None:
        """Draw lines over what was drawn before."""
        from rich.text import Text

        self._live.update(
            Text.from_ansi("\n".join(map(terminal.written, lines)), no_wrap=True, overflow="crop"), refresh=True
        )


class KeyInput:
    """Single keys from the terminal, not shown and without Enter; afterwards the terminal is as it was."""

    def __init__(self) -> None:
        """Prepare; without a terminal no key is ever pressed."""
        self._input = sys.stdin.fileno() if sys.stdin.isatty() else None

    def __enter__(self) -> Self:
        """Switch to single keys; Ctrl-C stays an interrupt."""
        if self._input is not None:
            self._before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the terminal."""
        if self._input is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def pressed(self, seconds: float) -> str:
        """Return the keys pressed within so many seconds, or an empty text."""
        if self._input is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._input], [], [], seconds)[0]:
            return ""
        keys = os.read(self._input, 64)
        if not keys:
            raise KeyboardInterrupt  # the terminal is gone
        return keys.decode(errors="replace")
