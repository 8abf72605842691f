"""Settings: where database, broker, tracking and data folder are; from the environment, `orch.toml` and defaults."""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from orchestrator import bounded_file
from orchestrator.errors import ConfigError
from orchestrator.masking import mask

FILE_NAME = "orch.toml"
Origin = Literal["environment", "file", "default"]
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?) *([kmgt]?)(i?)b?", re.IGNORECASE)
_WORDS = {"compile": ("auto", "off"), "log_format": ("text", "json")}
_MAY_BE_ZERO = {
    "grace_seconds",
    "reconcile_seconds",
    "poll_seconds",
    "terminate_seconds",
    "outage_seconds",
    "checkpoint_seconds",
}


# A dataclass, not a pydantic model: every command reads the settings, and pydantic costs a tenth of a second of CPU.
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where this process reads and writes. Frozen; never stored in the database.

    Raises:
        ConfigError: a value of the wrong type or out of range; says which.
    """

    home: Path = Path(".orch")
    """Data folder: embedded databases, token files, checkpoints, logs."""
    artifacts: str = ""
    """Checkpoints and finished SAEs, in one folder under one path for all workers; empty = in the data folder."""
    database_url: str = ""
    """SQLAlchemy URL; empty = SQLite in the data folder."""
    broker_url: str = ""
    """redis://… wakes Celery workers; empty = workers poll the database."""
    tracking_url: str = ""
    """MLflow tracking URI; empty = SQLite in the data folder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: str = "auto"
    """auto: training steps are compiled where that was measured to gain; off: never."""
    jobs_per_trainer: int = 8
    """Most jobs of one stream of activations that one trainer trains together; 1 = each alone."""
    memory: str = ""
    """What a trainer may use, such as 6GiB; empty = this worker's part of what its device has free."""
    cache_bytes: str = "20 GB"
    """Room for activation caches in the data folder, such as 50 GB; over it those used longest ago go."""
    heartbeat_seconds: float = 15.0
    lease_seconds: float = 90.0
    grace_seconds: float = 15.0
    """Added to a lease before it counts as expired."""
    reconcile_seconds: float = 10.0
    poll_seconds: float = 0.0
    """Seconds between looks at the queue; 0 = 1 without a broker, 30 with one."""
    stall_seconds: float = 900.0
    """A trainer silent for this long loses its lease."""
    terminate_seconds: float = 90.0
    """From SIGTERM to SIGKILL of a trainer."""
    outage_seconds: float = 1800.0
    """How long the database may be out of reach before trainers write a checkpoint and end."""
    checkpoint_seconds: float = 60.0
    """Wall seconds between two checkpoints of a job."""
    log_format: str = "text"
    """What a worker writes to its log: text for people, or json, one object a line."""
    explainers: str = ""
    """What evaluations on this machine may ask for explanations: base URLs and whole commands, separated by commas."""
    explainer_key: str = "EXPLAINER_API_KEY"
    """Environment variable with the key of those URLs; the key itself is in no setting and no config."""

    def __post_init__(self) -> None:
        """Check every value, and turn numbers written as text into numbers."""
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))
        if self.lease_seconds <= self.heartbeat_seconds:
            raise ConfigError(
                f"lease_seconds {self.lease_seconds:g} is not above heartbeat_seconds {self.heartbeat_seconds:g}",
                hint="A lease must outlive several heartbeats: make it about six times as long.",
            )

    @property
    def embedded(self) -> bool:
        """Say whether this is the one-host mode: SQLite in the data folder."""
        return not self.database_url

    @property
    def artifacts_folder(self) -> Path:
        """Return where checkpoints and finished SAEs are: `<job>/<attempt>/<tokens>/`."""
        return Path(self.artifacts) if self.artifacts else self.home / "artifacts"

    def artifact(self, uri: str) -> str:
        """Return where a checkpoint or a finished SAE is now, which was written to `uri`: the folder may have moved."""
        parts = Path(uri).parts[-3:]  # <job>/<attempt>/<tokens>
        here = self.artifacts_folder.joinpath(*parts)
        return str(here) if ".." not in parts and here.exists() else uri

    @property
    def logs_folder(self) -> Path:
        """Return where the logs of jobs and of started programs are."""
        return self.home / "logs"

    def log_file(self, job_id: int, attempt: int) -> Path:
        """Return the log of an attempt's trainer."""
        return self.logs_folder / str(job_id) / f"{attempt}.log"

    @property
    def database(self) -> str:
        """Return the database URL in force."""
        return self.database_url or sqlite_url(self.home / "orch.db")

    @property
    def tracking(self) -> str:
        """Return the MLflow tracking URI in force."""
        return self.tracking_url or sqlite_url(self.home / "mlflow.db")

    @property
    def memory_bytes(self) -> int | None:
        """Return what a trainer may use; None = ask the device."""
        return _bytes("memory", self.memory) if self.memory else None

    @property
    def cache_limit(self) -> int:
        """Return the bytes activation caches may take."""
        return _bytes("cache_bytes", self.cache_bytes)

    @property
    def poll(self) -> float:
        """Return the seconds between two looks at the queue."""
        return self.poll_seconds or (30.0 if self.broker_url else 1.0)

    def __repr__(self) -> str:
        """Show every setting, secrets masked."""
        shown = (f"{f.name}={mask(str(getattr(self, f.name)))!r}" for f in fields(self))
        return f"Settings({', '.join(shown)})"


NAMES = tuple(field.name for field in fields(Settings))
VARIABLES = {f"ORCH_{name.upper()}": name for name in NAMES}
"""By environment variable: the setting it sets."""


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, whatever characters are in its path."""
    quoted = str(file).replace("%", "%25").replace("?", "%3F")
    # Of sqlite:/// alone MLflow makes the folder, and takes the quoted name for it.
    return f"sqlite:///{file}" if quoted == str(file) else f"sqlite+pysqlite:///{quoted}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None of any other URL."""
    found = re.match(r"sqlite(?:\+pysqlite)?:///([^?]*)", url)
    return Path(unquote(found[1])) if found else None


def place_of(url: str) -> str:
    """Return for a person where a database is: the file of a SQLite URL, any other URL without its passwords."""
    file = sqlite_file(url)
    return mask(url) if file is None else str(file)


def load(*, start: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force for a folder: environment over the nearest `orch.toml` over defaults."""
    return Settings(**{name: value for name, (value, _) in resolve(start=start, environ=environ).items()})


def resolve(*, start: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, tuple[Any, Origin]]:
    """Return each setting's value with where it came from.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    folder = (start or Path.cwd()).resolve()
    file = nearest_file(folder)
    found: dict[str, tuple[Any, Origin]] = {f.name: (f.default, "default") for f in fields(Settings)}
    found |= {name: (value, "file") for name, value in (_read(file) if file else {}).items()}
    found |= {name: (value, "environment") for name, value in _from_environment(environ).items()}
    settings = _validated(found)
    checked = {name: (getattr(settings, name), found[name][1]) for name in NAMES}
    for name, path in (("home", settings.home), ("artifacts", Path(settings.artifacts))):
        origin = found[name][1]
        base = file.parent if file and origin != "environment" else folder
        absolute = (base / (path.expanduser() if path.parts[:1] == ("~",) else path)).resolve()
        if name == "home":
            checked[name] = (absolute, origin)
        elif settings.artifacts:
            checked[name] = (str(absolute), origin)
    return checked


def _validated(found: Mapping[str, tuple[Any, Origin]]) -> Settings:
    for name, (value, origin) in found.items():
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            raise ConfigError(
                f"unknown setting {name!r} ({origin})" + (f"; did you mean {near[0]!r}?" if near else ""), hint=_HINT
            )
        try:
            _checked(name, value)
        except ConfigError as error:
            raise ConfigError(f"setting {name!r} ({origin}): {error.message}", hint=error.hint) from None
    return Settings(**{name: value for name, (value, _) in found.items()})


def _checked(name: str, value: Any) -> Any:
    """Return a setting's value in its own type."""
    if name.endswith("_seconds"):
        return _seconds(name, value)
    if name == "jobs_per_trainer":
        return _count(name, value)
    wanted = (str, Path) if name == "home" else str
    if not isinstance(value, wanted):
        raise ConfigError(f"{name} takes text, not {value!r}", hint=_HINT)
    if name == "device" and not _DEVICE.fullmatch(str(value)):
        raise ConfigError(f"device takes auto, cpu, cuda or cuda:N, not {value!r}", hint=_HINT)
    if name in _WORDS and value not in _WORDS[name]:
        raise ConfigError(f"{name} takes {' or '.join(_WORDS[name])}, not {value!r}", hint=_HINT)
    if name == "cache_bytes" or (name == "memory" and value):
        _bytes(name, str(value))
    return Path(value) if name == "home" else value


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} takes a number of seconds, not {value!r}", hint=_HINT) from None
    if not math.isfinite(seconds):
        raise ConfigError(f"{name} takes a finite number, not {value!r}", hint=_HINT)
    if seconds < 0 or (seconds == 0 and name not in _MAY_BE_ZERO):
        least = "0 or more" if name in _MAY_BE_ZERO else "greater than 0"
        raise ConfigError(f"{name} must be {least}, not {value!r}", hint=_HINT)
    return seconds


def _count(name: str, value: Any) -> int:
    try:
        count = 0 if isinstance(value, bool | float) else int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ConfigError(f"{name} takes a whole number of 1 or more, not {value!r}", hint=_HINT)
    return count


def _bytes(name: str, text: str) -> int:
    """Return a size such as 6GiB, 512 MB or 1e9 in bytes."""
    found = _SIZE.fullmatch(text.strip())
    size = 0.0
    if found:
        number, prefix, is_binary = found.groups()
        unit = 1024 if is_binary else 1000
        size = float(number) * unit ** " kmgt".index(prefix.lower() or " ")
    if not math.isfinite(size) or size < 1:
        raise ConfigError(f"{name} takes a size such as 6GiB or 800MB, not {text!r}", hint=_HINT)
    return int(size)


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    found = {VARIABLES[key]: value for key, value in environ.items() if key in VARIABLES and value != ""}
    if "MLFLOW_TRACKING_URI" in environ:
        found.setdefault("tracking_url", environ["MLFLOW_TRACKING_URI"])
    return found


def nearest_file(folder: Path) -> Path | None:
    """Return the `orch.toml` of a folder or of the nearest one above it; None where there is none."""
    candidates = (parent / FILE_NAME for parent in (folder, *folder.parents))
    return next((file for file in candidates if file.is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(bounded_file.read_text(file, what="settings"))
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{file}: {error}", hint="Correct the file; or move or delete it first, and make a new one with: orch init"
        ) from None


_HINT = f"Known settings: {', '.join(NAMES)}"
