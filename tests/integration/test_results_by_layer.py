"""`orch results --by-layer`: a row for each SAE and score, a column for each layer."""

import csv
import io

import pytest
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.cli.main import run
from orchestrator.evaluation.job_scores import sweep_scores
from tests.evaluation_shorthand import record, score, take, train
from tests.queue_shorthand import enqueue
from tests.worker_shorthand import items

pytestmark = pytest.mark.databases("sqlite")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(engine: Engine) -> Engine:
    """Two SAEs of a sweep `s`."""
    enqueue(engine, 2)
    train(engine)
    train(engine)
    return engine


def measure_at_layers(engine: Engine, fvu: dict[int, float], *, tokens: int = 4096) -> None:
    """Let the next evaluation find fvu at these layers, and l0 at layer 10."""
    lease = take(engine).lease
    of_each = [score("fvu", value, variant=f"layer={layer}", std_error=0.01) for layer, value in fvu.items()]
    mean = score("fvu", sum(fvu.values()) / len(fvu), variant="mean over layers", details={"layers": [*fvu]})
    of_all = [mean, score("fvu", 0.7806, variant="cv over layers"), score("fvu", 9.0, variant="layer=0, first")]
    found = [*of_each, *of_all, score("l0", 8.0, variant="layer=10")]
    queue.record_scores(
        engine, lease, "reconstruction", found, wall_seconds=1.0, tokens=tokens, measured_on="corpus.txt"
    )
    queue.finish_evaluation(engine, lease, 2.0)


def test_scores_by_layer_are_a_matrix(trained: Engine, capsys: Capture) -> None:
    assert run(["results", "s", "--by-layer"]) == 0
    assert "Nothing has been measured of these yet. To measure them at every layer" in capsys.readouterr().err
    run(["evaluate", "s"])
    lease = take(trained).lease
    record(trained, lease, "reconstruction", score("fvu", 0.25), score("fvu", 0.5, variant="first"))
    queue.finish_evaluation(trained, lease, 2.0)
    capsys.readouterr()
    assert run(["results", "s", "--by-layer"]) == 0
    assert capsys.readouterr().err == (
        "These have been measured at no layers one by one. To measure them at every layer: orch evaluate SELECTOR "
        "--across-layers\n"
    )
    queue.pause(trained, [4])
    run(["evaluate", "s", "--again"])
    at_layers = {1: {10: 0.5, 2: 0.2, 0: 0.1}, 2: {10: 0.4, 2: 0.3, 0: 0.2}}
    for found in at_layers.values():
        measure_at_layers(trained, found)
    capsys.readouterr()
    assert run(["results", "s", "--by-layer"]) == 0
    said = capsys.readouterr()
    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        "METRIC SAE TRAINED ON N K LAYER 0 LAYER 2 LAYER 10 MEAN CV",
        "fvu 1 resid_post 4 64 32 0.1000* 0.2000* 0.5000 0.2667 0.7806",
        "fvu 2 resid_post 4 64 32 0.2000 0.3000 0.4000* 0.3000 0.7806",
    ]
    assert said.err == "\n2 more rows: --metrics NAME,..., --variants, or -o csv\n"
    assert run(["results", "2", "--by-layer", "--metrics", "fvu,l0", "-o", "csv"]) == 0
    fvu, l0 = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [fvu[name] for name in ("metric", "layer_10", "layer_10_std_error", "cv")] == [
        "fvu",
        "0.4",
        "0.01",
        "0.7806",
    ]
    assert (l0["metric"], l0["layer_10"], l0["layer_2"], l0["mean"]) == ("l0", "8.0", "", "")
    assert run(["results", "1", "--by-layer", "--variants", "-o", "json"]) == 0
    assert [(one["metric"], one["variant"], one["layer_0"]) for one in items(capsys)] == [
        ("fvu", "", 0.1), ("fvu", "first", 9.0), ("l0", "", None),
    ]  # fmt: skip
    assert run(["results", "s", "--by-layer", "--long"]) == 2
    assert "two tables: ask for one of them" in capsys.readouterr().err


def test_a_mean_is_of_the_layers_that_stand_beside_it(trained: Engine, capsys: Capture) -> None:
    def by_layer(fvu: dict[int, float], tokens: int) -> list[str]:
        run(["evaluate", "1", "--again", "--metrics", "reconstruction"])
        measure_at_layers(trained, fvu, tokens=tokens)
        capsys.readouterr()
        assert run(["results", "1", "--by-layer", "--metrics", "fvu", "-o", "csv"]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        columns = ("layer_0", "layer_2", "layer_10", "mean", "cv")
        return [row[name] and f"{float(row[name]):.3f}" for name in columns] + [row["tokens"]]

    assert by_layer({0: 0.1, 2: 0.2, 10: 0.6}, 4096) == ["0.100", "0.200", "0.600", "0.300", "0.781", "4096"]
    again = by_layer({0: 0.1, 2: 0.2}, 4096)
    assert again == ["0.100", "0.200", "0.600", "0.300", "0.720", "4096"], "the mean of all three, not the last one's"
    found = sweep_scores(trained, ["s"]).by_job[1]
    assert found["fvu mean over layers"].value == pytest.approx(0.3)
    assert found["fvu cv over layers"].value == pytest.approx(0.72008, rel=1e-4)
    assert by_layer({0: 0.9}, 512) == again, "layers of one row are of as many tokens"
    assert by_layer({0: 0.4, 2: 0.4, 10: 0.4}, 512)[-1] == "512"
