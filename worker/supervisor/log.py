"""A worker's log on stderr: lines of text, or, with `log_format = "json"`, one JSON object a line."""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Self

from orchestrator.masking import clean

Level = Literal["info", "warning", "error"]


class LogLine(str):
    """A str that also carries its level, its bare message and the fields that it is about."""

    level: Level
    message: str
    about: dict[str, int | str]
    """job, attempt and the first characters of the token, as far as they apply."""

    def __new__(cls, message: str, *, prefix: str = "", level: Level = "info", **about: int | str) -> Self:
        """Make the line `prefix` + `message`."""
        made = super().__new__(cls, prefix + message)
        made.level, made.message, made.about = level, message, about
        return made

    @classmethod
    def of(cls, text: str) -> "LogLine":
        """Return a LogLine as it is, or make one of plain text."""
        return text if isinstance(text, cls) else cls(text)


class WorkerLog:
    """Prints events, each on a line of its own, behind the name of the worker of several that has them."""

    def __init__(self, label: str = "", *, worker: str = "", form: str = "text") -> None:
        """Take the label (empty for a worker that is alone), the worker's name, and `text` or `json`."""
        self._label, self._worker, self._form = f"[{label}] " if label else "", worker, form

    def __call__(self, text: str) -> None:
        """Print one event."""
        plain = f"{time.strftime('%H:%M:%S')}  {self._label}{text}"
        print(self._as_json(text) if self._form == "json" else plain, file=sys.stderr, flush=True)

    def _as_json(self, text: str) -> str:
        line = LogLine.of(text)
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {
            "time": at,
            "level": line.level,
            "worker": clean(self._worker),
            **line.about,
            "message": clean(line.message.strip()),
        }
        return json.dumps(said, ensure_ascii=False)


class Libraries(logging.Handler):
    """Writes to a worker's log what Celery, MLflow and others log from warnings up, and Python's own warnings."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter())
        self._say = say

    def install(self) -> None:
        """Become the one handler of this process."""
        logging.basicConfig(handlers=[self], level=logging.WARNING, force=True)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback."""
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        prefix = f"{record.name.partition('.')[0]}: "
        try:
            self._say(LogLine(self.format(record).strip(), prefix=prefix, level=level, logger=record.name))
        except (OSError, TypeError, ValueError):  # stderr is closed, or the record is malformed
            self.handleError(record)
