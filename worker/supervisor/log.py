"""What a worker says: a line for a person, or, with `log_format = "json"`, an object for a program."""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Self

Level = Literal["info", "warning", "error"]


class LogLine(str):
    """A line that also knows its level, its bare message and what it is about; to everybody else it is text."""

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
        """Return a remark, or make one of plain text."""
        return text if isinstance(text, cls) else cls(text)


class WorkerLog:
    """Prints events, each on a line of its own, behind the name of the worker of several that has them."""

    def __init__(self, label: str = "", *, worker: str = "", form: str = "text") -> None:
        """Take the label (empty for a worker that is alone), the worker's name, and `text` or `json`."""
        self._label, self._worker, self._form = f"[{label}] " if label else "", worker, form

    def __call__(self, text: str) -> None:
        """Print one event."""
        line = self._as_json(text) if self._form == "json" else f"{time.strftime('%H:%M:%S')}  {self._label}{text}"
        print(line, file=sys.stderr, flush=True)

    def _as_json(self, text: str) -> str:
        remark = LogLine.of(text)
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {
            "time": at,
            "level": remark.level,
            "worker": self._worker,
            **remark.about,
            "message": remark.message.strip(),
        }
        return json.dumps(said, ensure_ascii=False)


class Libraries(logging.Handler):
    """Says in a worker's voice what Celery, MLflow and others log from warnings up, and Python's own warnings."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter())
        self._say = say

    def install(self) -> None:
        """Become the one handler of this process."""
        logging.basicConfig(handlers=[self], level=logging.WARNING, force=True)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record; its traceback stays with it."""
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        prefix = f"{record.name.partition('.')[0]}: "
        try:
            self._say(LogLine(self.format(record).strip(), prefix=prefix, level=level, logger=record.name))
        except (OSError, TypeError, ValueError):  # nobody reads, or the record is none: logging's own way out
            self.handleError(record)
