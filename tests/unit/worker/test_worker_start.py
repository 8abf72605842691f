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


def test_a_worker_loads_no_numbers_no_figures_and_no_mlflow_before_it_has_a_job(tmp_path: Path) -> None:
    """numpy, scipy and the figures of laws came with what `orch tracking sync` alone needs: a third of its start."""
    environ = os.environ | {"ORCH_HOME": str(tmp_path), "ORCH_DATABASE_URL": ""}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=environ, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "worker.supervisor.trainer_group" in loaded
    assert not {"numpy", "scipy", "matplotlib", "mlflow", "torch", "transformers", "pandas"} & loaded
