"""`examples/notebook.ipynb` runs from its first cell to its last on a small sweep, and shows what it printed."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import orch
from orchestrator.fits import store
from tests.made_fits import power_law
from tests.small_world import ROOT, small_world

NOTEBOOK = json.loads((ROOT / "examples" / "notebook.ipynb").read_text())
CODE: list[dict[str, Any]] = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("Agg")
    small = [
        "training.max_tokens=8192",
        "training.shuffle_tokens=4096",
        "data.max_tokens=60_000",
        "stop.rule=max_tokens",
    ]
    with small_world(tmp_path / "home") as world, orch.open(home=world.settings.home) as study:
        ids = study.enqueue(ROOT / "examples" / "quickstart.yaml", *small)
        world.work("--until-empty")
        study.wait(*ids, timeout=200)
        store.save(world.engine, [power_law(sweeps=("quickstart",))])
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    names: dict[str, Any] = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "latents of blocks.3.hook_resid_post, 128 dimensions" in said
    assert "nats per token" in said
    names["study"].close()


def test_what_it_shows_was_printed_and_holds_no_place() -> None:
    assert len(NOTEBOOK["cells"]) <= 16
    assert all(cell["outputs"] for cell in CODE)
    shown = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in shown} <= {"execute_result", "display_data", "stream"}
    assert "/tmp" not in json.dumps(
        [output.get("data", {}).get("text/plain") or output.get("text") for output in shown]
    )
