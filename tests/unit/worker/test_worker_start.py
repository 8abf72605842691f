"""A worker starts its first trainer sooner for what it does not load."""

import os
import subprocess
import sys
from pathlib import Path

_PROBE = """
import sys
from worker.__main__ import main
status = main(["--until-empty"])
print("MODULES", *sys.modules)
sys.exit(status)
"""


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"ORCH_HOME": str(home), "ORCH_DATABASE_URL": ""}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True, check=False)


def test_what_a_worker_refuses_begins_as_with_every_command(tmp_path: Path) -> None:
    done = _run(tmp_path, "-m", "worker", "--device", "abacus")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")


def test_a_worker_loads_no_numbers_no_figures_and_no_mlflow_before_it_has_a_job(tmp_path: Path) -> None:
    """numpy, scipy and the figures of laws came with what `orch tracking sync` alone needs: a third of its start."""
    done = _run(tmp_path, "-c", _PROBE)
    assert done.returncode == 0
    loaded = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "worker.supervisor.trainer_group" in loaded
    assert not {"numpy", "scipy", "matplotlib", "mlflow", "torch", "transformers", "pandas"} & loaded
