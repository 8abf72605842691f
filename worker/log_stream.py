"""Standard error as a log: without secrets or control characters, and never waited for.

A log whose disk is full, whose pipe is closed, or whose reader has stopped loses lines; the program goes on.
"""

import io
import os
import select
import sys
import threading

from orchestrator.masking import clean

_AT_ONCE = 4096
"""Bytes that a pipe which can be written to takes without a wait (PIPE_BUF)."""
_PATIENCE_MS = 50
_MOST_HELD = 1 << 20
"""Characters of a line without an end."""


class LogStream(io.TextIOBase):
    """A text stream on a file descriptor whose writes neither fail nor wait."""

    def __init__(self, descriptor: int) -> None:
        """Write to this descriptor, which stays open."""
        self._descriptor, self._line, self._lost = descriptor, "", 0
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding."""
        return "utf-8"

    def fileno(self) -> int:
        """Return the descriptor, for the output of child processes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Say whether this is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Write the lines that are whole, and keep the rest until its end comes: a secret may be in two pieces."""
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            if len(self._line) > _MOST_HELD:
                lines, self._line = [*lines, self._line], ""
            if lines:
                self._put(lines)
        return len(text)

    def flush(self) -> None:
        """Write what is there of the last line."""
        with self._lock:
            text, self._line = self._line, ""
            if text:
                self._send(clean(text))

    def _put(self, lines: list[str]) -> None:
        if self._lost:
            lines = [f"({self._lost} lines of this log were lost here)", *lines]
        if self._send(clean("\n".join(lines)) + "\n"):
            self._lost = 0
        else:
            self._lost += len(lines) - (self._lost > 0)

    def _send(self, text: str) -> bool:
        """Write a text as far as that needs no wait; say whether all of it was."""
        left = memoryview(text.encode(errors="replace"))
        try:
            gate = select.poll()
            gate.register(self._descriptor, select.POLLOUT)
            while left:
                if not gate.poll(0 if self._lost else _PATIENCE_MS):
                    return False
                left = left[os.write(self._descriptor, left[:_AT_ONCE]) :]
        except (OSError, ValueError):
            return False
        return True


def install() -> None:
    """Let standard error be such a log."""
    sys.stderr = LogStream(2)
