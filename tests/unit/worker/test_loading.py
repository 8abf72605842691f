"""Loading libraries looks for garbage rarely, in every process that loads torch; the work behind it as Python does."""

import gc
import subprocess
import sys

import pytest

from orchestrator.loading.rare_collections import OBJECTS, rare_collections
from tests.small_world import ROOT

_PROBE = """
import gc, sys
from contextlib import suppress
from orchestrator.config.validation import parse
from orchestrator.config.lens.training import LensConfig
from orchestrator.errors import OrchError
from worker import evaluation_order, lens_order, protocol
from worker.channel import SupervisorChannel
from worker.evaluation import __main__ as evaluation
from worker.lens_training import __main__ as lens
from worker.trainer import __main__ as trainer
nowhere = {"model": "/nowhere", "layer": 1}
job = protocol.Assignment(1, 1, parse({"subject": nowhere, "sae": {"n_latents": 8, "k": 2}}), "", ())
carry_out, order = {
    "trainer": (trainer.carry_out, protocol.Order((job,), "", "", "cpu", 1, 1.0, 0)),
    "evaluation": (evaluation.carry_out, evaluation_order.EvaluationOrder((), "", "", "", "cpu", 1, 0)),
    "lens": (lens.carry_out, lens_order.LensOrder(
        1, 1, LensConfig.model_validate({"subject": {"model": "/nowhere"}}), "", (), "", "", 1.0, "cpu", 1, 0)),
}[sys.argv[1]]
before, threshold = gc.get_stats()[0]["collections"], gc.get_threshold()
with suppress(OrchError):
    carry_out(order, SupervisorChannel())
assert "torch" in sys.modules
print(gc.get_stats()[0]["collections"] - before, gc.get_threshold() == threshold, file=sys.stderr)
"""


@pytest.mark.parametrize("process", ["trainer", "evaluation", "lens"])
def test_what_loads_torch_hardly_looks_for_garbage_meanwhile(process: str) -> None:
    """It did so a thousand times, in a sixth of the time that loading takes."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, process], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    collections, is_restored = done.stderr.split()[-2:]
    assert int(collections) < 50
    assert is_restored == "True"


def test_an_error_leaves_the_search_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), rare_collections():
        _ = 1 // (gc.get_threshold()[0] - OBJECTS)
    assert gc.get_threshold() == before
