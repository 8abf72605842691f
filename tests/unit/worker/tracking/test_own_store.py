"""MLflow's own store: what makes it, and what is said where it cannot be made."""

import subprocess
import sys
from pathlib import Path

from orchestrator.mlflow_store import fault
from tests.small_world import ROOT

_PROBE = """
import resource, signal, sys
from pathlib import Path
from orchestrator.errors import StorageError
from orchestrator.settings import Settings
from worker.tracking.own_store import prepare
home, most_bytes = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import mlflow.store.tracking.sqlalchemy_store
resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
try:
    print(prepare(Settings(home=home)))
except StorageError as error:
    print(f"{error.message} ({error.hint})")
of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(of_children.ru_utime)
"""


def _prepared(home: Path, *, most_bytes: int) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", _PROBE, str(home), str(most_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=200)
    return done.stdout.splitlines()


def test_what_has_loaded_mlflow_makes_the_store_itself(tmp_path: Path) -> None:
    """A process of its own loaded all of MLflow a second time."""
    aside, seconds_of_children = _prepared(tmp_path, most_bytes=2**30)
    assert aside == "None"
    assert float(seconds_of_children) < 0.5
    assert fault(tmp_path / "mlflow.db") is None


def test_a_disk_without_room_is_a_plain_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    said, _ = _prepared(tmp_path, most_bytes=2**16)
    assert said.startswith(f"MLflow cannot make its store {tmp_path / 'mlflow.db'}: ")
    assert said.endswith("(Is there room? orch doctor)")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.lock"]
