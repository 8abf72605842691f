"""What cannot be measured is said before anything is queued: by `orch evaluate`, and by `orch enqueue` of a sweep."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import results
from orchestrator.cli.main import run
from tests import evaluation_shorthand as shorthand
from tests.queue_shorthand import enqueue

pytestmark = pytest.mark.databases("sqlite")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(engine: Engine) -> Engine:
    """An SAE of layer 4 of the model that ships."""
    enqueue(engine, 1)
    shorthand.train(engine)
    return engine


def test_what_a_family_cannot_measure_of_an_sae_is_said_before_anything_is_queued(
    trained: Engine, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["evaluate", "1", "--metrics", "reconstruction,layers"]) == 1
    told = capsys.readouterr().err
    assert "1 cannot be evaluated: layers: it reads layer 4 alone" in told
    assert "Train one with subject.layers: all (docs/multi-layer.md), or leave the family out." in told
    shorthand.imported(trained, "several", layers=(1, 3))
    assert run(["evaluate", "1", "sae:several", "--metrics", "layers", "--across-layers"]) == 0
    said = capsys.readouterr()
    assert said.out == "layers: added 1 job (job 2)\n"
    assert "1 cannot be evaluated: layers: it reads layer 4 alone" in said.err
    file = tmp_path / "s.yaml"
    file.write_text("version: 1\nname: s2\nsweep: [grid: {sae.k: [4, 8]}]\nevaluate: [reconstruction, layers]\n")
    for command in (["enqueue"], ["enqueue", "--dry-run"], ["config", "validate"]):
        assert run([*command, str(file)]) == 2
        said = capsys.readouterr()
        assert (said.out, "Traceback" in said.err) == ("", False)
        assert "evaluate: an SAE of this sweep cannot be measured: layers: it reads layer 4 alone" in said.err
    assert [row.id for row in results.jobs(trained, sweep="s2")] == []
