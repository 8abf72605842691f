"""WHERE things are: database, broker, tracking and data folder, from the environment, `orch.toml` and defaults."""

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import ConfigError

FILE_NAME = "orch.toml"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Origin = Literal["environment", "file", "default"]


class Settings(BaseModel):
    """Where this process finds and keeps things. Frozen; never stored in the database."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path(".orch")
    """Data folder: embedded databases, token files, checkpoints, logs."""
    database_url: str = ""
    """SQLAlchemy URL; empty = SQLite in the data folder."""
    broker_url: str = ""
    """redis://… wakes Celery workers; empty = workers poll the database."""
    tracking_url: str = ""
    """MLflow tracking URI; empty = SQLite in the data folder."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    heartbeat_seconds: PositiveSeconds = 15.0
    lease_seconds: PositiveSeconds = 90.0
    grace_seconds: Seconds = 15.0
    """Added to a lease before it counts as expired."""
    reconcile_seconds: Seconds = 10.0
    poll_seconds: Seconds = 0.0
    """Seconds between looks at the queue; 0 = 1 without a broker, 30 with one."""
    stall_seconds: PositiveSeconds = 900.0
    """A trainer silent for this long loses its lease."""
    terminate_seconds: Seconds = 90.0
    """From SIGTERM to SIGKILL of a trainer."""
    outage_seconds: Seconds = 1800.0
    """How long the database may be away before trainers checkpoint and yield."""
    checkpoint_seconds: Seconds = 60.0
    """Wall seconds between two checkpoints of a job."""

    @property
    def embedded(self) -> bool:
        """Say whether this is the one-host mode: SQLite in the data folder."""
        return not self.database_url

    @property
    def database(self) -> str:
        """Return the database URL in force."""
        return self.database_url or f"sqlite:///{self.home / 'orch.db'}"

    @property
    def tracking(self) -> str:
        """Return the MLflow tracking URI in force."""
        return self.tracking_url or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def poll(self) -> float:
        """Return the seconds between two looks at the queue."""
        return self.poll_seconds or (30.0 if self.broker_url else 1.0)

    def __repr_args__(self) -> Any:
        """Mask secrets wherever a Settings is printed."""
        return ((name, mask(value) if isinstance(value, str) else value) for name, value in super().__repr_args__())


def mask(text: str) -> str:
    """Hide the passwords of a URL; return other text as it is."""
    hidden = re.sub(r"(?<=://)([^:/@?]*):.*@", r"\1:***@", text, count=1)
    return re.sub(r"([?&](?:[a-z_]*password|token|secret)=)[^&#]*", r"\1***", hidden, flags=re.IGNORECASE)


def load(*, start: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force for a folder: environment over the nearest `orch.toml` over defaults."""
    return Settings.model_validate({name: value for name, (value, _) in resolve(start=start, environ=environ).items()})


def resolve(*, start: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, tuple[Any, Origin]]:
    """Return each setting's value with where it came from.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    folder = (start or Path.cwd()).resolve()
    file = _nearest_file(folder)
    found: dict[str, tuple[Any, Origin]] = {n: (f.default, "default") for n, f in Settings.model_fields.items()}
    found |= {name: (value, "file") for name, value in (_read(file) if file else {}).items()}
    found |= {name: (value, "environment") for name, value in _from_environment(environ).items()}
    settings = _checked(found)
    checked = {name: (getattr(settings, name), found[name][1]) for name in Settings.model_fields}
    base = file.parent if file and checked["home"][1] != "environment" else folder
    home = settings.home.expanduser() if settings.home.parts[:1] == ("~",) else settings.home
    checked["home"] = ((base / home).resolve(), checked["home"][1])
    return checked


def _checked(found: Mapping[str, tuple[Any, Origin]]) -> Settings:
    try:
        settings = Settings.model_validate({name: value for name, (value, _) in found.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        near = [] if name in Settings.model_fields else get_close_matches(name, Settings.model_fields, n=1)
        raise ConfigError(
            f"setting {name!r} ({found[name][1]}): {first['msg']}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"Known settings: {', '.join(Settings.model_fields)}",
        ) from None
    if settings.lease_seconds <= settings.heartbeat_seconds:
        raise ConfigError(
            f"lease_seconds {settings.lease_seconds:g} is not above heartbeat_seconds {settings.heartbeat_seconds:g}",
            hint="A lease must outlive several heartbeats: make it about six times as long.",
        )
    return settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {f"ORCH_{name.upper()}": name for name in Settings.model_fields}
    found = {names[key]: value for key, value in environ.items() if key in names and value != ""}
    if "MLFLOW_TRACKING_URI" in environ:
        found.setdefault("tracking_url", environ["MLFLOW_TRACKING_URI"])
    return found


def _nearest_file(folder: Path) -> Path | None:
    return next((f for p in (folder, *folder.parents) if (f := p / FILE_NAME).is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}", hint="Mend the file, or make a new one with: orch init") from None
