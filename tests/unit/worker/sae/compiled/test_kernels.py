"""The Triton kernels, interpreted on the CPU in a process of their own.

The interpreter must be asked for before Triton is imported, and whatever else of a process uses Triton would be
interpreted too.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[5]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here: pip install triton (Linux)")
def test_every_kernel_in_the_interpreter() -> None:
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 7):
        pytest.skip(f"the interpreter of Triton {version} cannot loop with NumPy 2.4: 3.7 can")
    # Without jaxtyping's import hook, which torch.compile cannot trace through.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers --strict-config --import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, "tests/unit/worker/sae/compiled/interpreted_kernels.py"]
    world = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=world, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
