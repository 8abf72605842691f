"""MLflow's server on this machine, over the tracking store in force."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Self

from orchestrator.errors import ConfigError, NotFound, OrchError, StorageError
from orchestrator.masking import mask
from orchestrator.mlflow_store import fault
from orchestrator.processes.python_process import open_log, python_command
from orchestrator.settings import Settings

HOST = "127.0.0.1"
STORES = ("sqlite:", "sqlite+", "postgresql:", "postgresql+", "mysql:", "mysql+", "mssql:", "mssql+")
START_SECONDS = 90.0
STOP_SECONDS = 10.0


class MlflowServer:
    """A process of its own, which is gone when the block ends."""

    def __init__(self, settings: Settings, port: int) -> None:
        """Check that the store can be served and the port is free.

        Raises:
            ConfigError: tracking_url is neither a server nor a database.
            NotFound: nothing is tracked yet.
            StorageError: the port cannot be used.
        """
        _check_store(settings)
        _check_port(port)
        self.address = f"http://{HOST}:{port}"
        self.log = settings.logs_folder / "ui.log"
        self._command = python_command(
            "mlflow", "server",
            "--default-artifact-root", (settings.home / "mlartifacts").as_uri(), "--no-serve-artifacts",
            "--host", HOST, "--port", str(port), "--workers", "1",
        )  # fmt: skip
        self._environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_BACKEND_STORE_URI": settings.tracking,  # not a flag: every user of the machine can read those
        }

    def __enter__(self) -> Self:
        """Start the server; it does not answer yet."""
        with open_log(self.log) as out:
            self._process = subprocess.Popen(
                self._command, stdout=out, stderr=out, env=self._environment, start_new_session=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server and all it started: they share a session of their own."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(STOP_SECONDS)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()

    def wait_until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            OrchError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise OrchError(
                    f"MLflow did not start: exit status {self._process.returncode}", hint=f"Its log: {self.log}"
                )
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise OrchError(f"MLflow did not answer within {START_SECONDS:g} s", hint=f"Its log: {self.log}")

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit status."""
        return self._process.wait()


def _check_store(settings: Settings) -> None:
    if not settings.tracking.startswith(STORES):
        raise ConfigError(
            f"tracking_url {mask(settings.tracking)!r} is neither a server nor a database",
            hint="Such as http://host:5000, or postgresql+psycopg://user:password@host/mlflow",
        )
    file = settings.home / "mlflow.db"
    if not settings.tracking_url and not file.exists():
        raise NotFound(
            f"nothing is tracked yet: {file} is not there",
            hint="A worker makes it: orch worker, or orch demo. What is in the database already: orch tracking sync",
        )
    wrong = None if settings.tracking_url else fault(file)
    if wrong is not None:
        raise StorageError(f"{file} is damaged: {wrong}", hint="orch tracking sync SWEEP makes it anew.")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            hint = (
                f"Perhaps `orch ui` runs already: http://{HOST}:{port}. Another port: orch ui --port {port % 65535 + 1}"
            )
            raise StorageError(f"port {port} cannot be used: {error.strerror}", hint=hint) from None
