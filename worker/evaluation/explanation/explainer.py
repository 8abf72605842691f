"""Ask an explainer: an OpenAI-compatible endpoint, or a local command. Both take one JSON request, and answer in JSON.

A config may come from others, and is run on the worker of whoever shares a database with them. So a config only names
an explainer; which may be asked, a setting of the worker's machine says (`explainers`), whole: a URL, or a command with
all its arguments. The key goes to such a URL alone, and is in a variable that a setting names, never a config.
"""

import json
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from orchestrator.config.evaluation.explanation import ExplanationOptions
from orchestrator.errors import ConfigError
from orchestrator.masking import mask
from orchestrator.settings import Settings
from worker.evaluation.explanation.answers import BadAnswer
from worker.evaluation.explanation.endpoint import Endpoint


@runtime_checkable
class Explainer(Protocol):
    """What can be asked, from several threads at once."""

    def ask(self, request: Mapping[str, Any]) -> str:
        """Return the text of an answer.

        Raises:
            BadAnswer: this request got none.
            ConfigError: none will: a person must mend something.
            MachineError: none for now.
        """

    def close(self) -> None:
        """End what runs."""


def open_explainer(options: ExplanationOptions, settings: Settings, environ: Mapping[str, str]) -> Explainer:
    """Return the explainer that a config names, where this machine's settings allow it.

    Raises:
        ConfigError: it is not allowed here.
    """
    asked = options.endpoint or shlex.join(options.command or ())
    allowed = [_canonical(entry.strip()) for entry in settings.explainers.split(",") if entry.strip()]
    if asked not in allowed:
        raise ConfigError(
            f"the setting explainers of this worker does not allow {mask(asked)}",
            hint="If you trust it with your text and this machine, add it: ORCH_EXPLAINERS, entries separated by ','.",
        )
    if options.command:
        return Command(options.command, options.timeout_seconds)
    key = environ.get(settings.explainer_key, "")
    return Endpoint(options.endpoint or "", options.model or "", key=key, timeout=options.timeout_seconds)


def _canonical(entry: str) -> str:
    if entry.startswith(("http://", "https://")):
        return entry.rstrip("/")
    try:
        return shlex.join(shlex.split(entry))
    except ValueError as error:
        raise ConfigError(f"setting 'explainers': {entry}: {error}", hint="Close the quotes.") from None


class Command:
    """A local program: one process per request, which gets it on its standard input and prints the answer."""

    def __init__(self, argv: tuple[str, ...], timeout: float) -> None:
        """Take the program and its arguments, and how many seconds it may take."""
        self._argv, self._timeout = argv, timeout
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: Mapping[str, Any]) -> str:
        """Return what the program prints for a request."""
        with self._lock:
            if self._is_closed:
                raise BadAnswer("the evaluation ended")
            child = self._start()
            self._running.add(child)
        with child:
            try:
                out, err = child.communicate(json.dumps(request).encode(), timeout=self._timeout)
            except subprocess.TimeoutExpired:
                raise BadAnswer(f"{self._argv[0]} gave no answer in {self._timeout:g} s") from None
            finally:
                _end(child)
                with self._lock:
                    self._running.discard(child)
        if child.returncode:
            last = err.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise BadAnswer(f"{self._argv[0]} ended with exit status {child.returncode}: {mask(last[0])[:200]}")
        return out.decode(errors="replace")

    def close(self) -> None:
        """End every process that still runs, with what it started."""
        with self._lock:
            self._is_closed = True
            for child in self._running:
                _end(child)

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise ConfigError(
                f"{self._argv[0]} cannot be run: {error.strerror}", hint="Correct explanation.command."
            ) from error


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started, where it has not ended by itself."""
    if child.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
