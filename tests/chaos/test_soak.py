"""A rehearsal of the soak with sick hosts: some seconds of what `make soak` does for minutes."""

import json
import os
import subprocess
import sys

import pytest

from tests.small_world import ROOT


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small or a read-only disk"
)
def test_sick_hosts_lose_double_and_charge_nothing() -> None:
    asked = ("--sick", "--faults", "15", "--minutes", "0.5", "--jobs", "8", "--workers", "4", "--every", "0.3")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.soak", *asked], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    if "no disk can be mounted" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert figures["drained"]
    of_trainings = ("lost", "doubled", "altered curves", "charged to a job, of a machine")
    of_evaluations = ("evaluations lost", "evaluations doubled", "scores altered")
    assert [figures[name] for name in (*of_trainings, *of_evaluations)] == [0] * 7
    assert figures["evaluations"] > figures["evaluations cancelled"]
    assert figures["faults"] >= 5
    assert figures["read-only artifacts"] + figures["full disk"] > 0
