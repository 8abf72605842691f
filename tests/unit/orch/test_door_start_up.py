"""`import orch` costs what it needs, and nothing else is loaded."""

import os
import subprocess
import sys

from tests.small_world import ROOT

_PROBE = """
import sys, time
start = time.process_time()
import orch
seconds = time.process_time() - start
loaded = {"torch", "transformers", "pandas", "sqlalchemy", "numpy", "pydantic"} & set(sys.modules)
study = orch.open()
study.jobs()
print(seconds, *loaded, "|", *({"torch", "transformers", "mlflow", "celery", "scipy"} & set(sys.modules)))
"""


def test_it_loads_what_it_needs_when_it_needs_it() -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=environ, capture_output=True, text=True, check=True)
    first, late = done.stdout.split("|")
    seconds, *early = first.split()
    assert early == []
    assert late.split() == []
    assert float(seconds) < 0.3
