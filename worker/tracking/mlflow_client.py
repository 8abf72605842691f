"""MLflow's experiments and runs: found by id or tags, else made; filled in batches. Written, hardly read.

All texts that go to MLflow pass through here, without secrets and control characters.
"""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from orchestrator.masking import clean
from orchestrator.settings import Settings
from worker.tracking.own_store import ARTIFACTS, prepare

ENTITIES_PER_CALL = 90
"""MLflow takes up to 100 params and 1,000 metrics in a call."""
PARAM_LENGTH = 1000
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: its page then opens with its runs, and not with traces, of which there are none."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default blocks a call for four minutes when the server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for data, and the URL may hold a password
    "GIT_PYTHON_REFRESH": "quiet",
}


class Measure(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    step: int
    at: float
    """Epoch seconds."""


class MlflowClient:
    """One tracking server or store."""

    def __init__(self, settings: Settings) -> None:
        """Connect; a store of our own is made where there is none, or none that is whole."""
        # First: MLflow takes a second to load, and another to notice that no server answers.
        _check_reachable(settings.tracking)
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic", "sqlalchemy.engine", "huey"):
            logger = logging.getLogger(name)
            logger.setLevel(logging.WARNING)
            logger.handlers, logger.propagate = [], True  # they go through the worker's own log
        self._artifacts = None if settings.tracking.startswith("http") else settings.home / ARTIFACTS
        self._seen: set[str] = set()
        self.set_aside = prepare(settings)
        """Where a store that was damaged has gone: a new one, empty, is in its place."""
        self._client = MlflowClient(settings.tracking)

    def experiment(self, name: str, *, known: str | None, number: int) -> str:
        """Return the id of the experiment of that name; it is made if it is not there."""
        if known is not None and known in self._seen:
            return known
        name = clean(name, lines=False)
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            name = f"{name} ({number})"  # MLflow keeps the name of a deleted experiment
            found = self._client.get_experiment_by_name(name)
        made = found.experiment_id if found else self._create_experiment(name)
        self._seen.add(str(made))
        return str(made)

    def _create_experiment(self, name: str) -> str:
        """Make an experiment, or return the one that another worker has made meanwhile."""
        from mlflow.exceptions import MlflowException

        place = (self._artifacts / quote(name, "")).as_uri() if self._artifacts else None
        try:
            return str(self._client.create_experiment(name, place, tags=_KIND))
        except MlflowException:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def known(self, run: str | None) -> str | None:
        """Return the id of a run that is there, None of any other."""
        if run is not None and (run in self._seen or self._exists(run)):
            self._seen.add(run)
            return run
        return None

    def find(self, known: str | None, experiment: str, tags: Mapping[str, object]) -> str | None:
        """Return a run by the id we know, or else by its tags."""
        if self.known(known):
            return known
        asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([experiment], asked, max_results=1, order_by=["attributes.start_time ASC"])
        if not found:
            return None
        self._seen.add(str(found[0].info.run_id))
        return str(found[0].info.run_id)

    def create(self, experiment: str, name: str, *, tags: Mapping[str, object], at: float) -> str:
        """Make a run."""
        texts = {clean(key): clean(str(value)) for key, value in tags.items()}
        run = self._client.create_run(experiment, start_time=int(at * 1000), tags=texts, run_name=clean(name))
        self._seen.add(str(run.info.run_id))
        return str(run.info.run_id)

    def params(self, run: str, values: Mapping[str, object]) -> None:
        """Write params; the same ones twice are one."""
        from mlflow.entities import Param

        params = [Param(clean(name), clean(str(value))[:PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(params), ENTITIES_PER_CALL):
            self._client.log_batch(run, params=params[start : start + ENTITIES_PER_CALL])

    def measures(self, run: str, values: Sequence[Measure]) -> None:
        """Write metrics; the same ones twice are one."""
        from mlflow.entities import Metric

        metrics = [Metric(v.name, v.value, int(v.at * 1000), v.step) for v in values]
        for start in range(0, len(metrics), ENTITIES_PER_CALL * 10):
            self._client.log_batch(run, metrics=metrics[start : start + ENTITIES_PER_CALL * 10])

    def end(self, run: str, status: str, *, at: float) -> None:
        """Close a run with a status and an end time."""
        self._client.set_terminated(run, status, end_time=int(at * 1000))

    def reopen(self, run: str) -> None:
        """Say that a run goes on."""
        self._client.update_run(run, status="RUNNING")

    def tag(self, run: str, name: str, value: str) -> None:
        """Write a tag; the same one twice is one."""
        self._client.set_tag(run, name, clean(value))

    def is_finished(self, run: str) -> bool:
        """Say whether a run has been closed as a good one."""
        return bool(self._client.get_run(run).info.status == "FINISHED")

    def has_file(self, run: str, folder: str) -> bool:
        """Say whether a run has artifacts in a folder."""
        return bool(self._client.list_artifacts(run, folder))

    def add_file(self, run: str, file: Path, folder: str) -> None:
        """Store a file as an artifact."""
        self._client.log_artifact(run, str(file), folder)

    def _exists(self, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def _check_reachable(uri: str) -> None:
    """Raise OSError where a server that we would reach directly takes no connections."""
    place = urlsplit(uri)
    if place.scheme in ("http", "https") and place.hostname and not getproxies():
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname, port), timeout=3).close()
