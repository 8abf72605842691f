"""Relative paths of a plan are read from its file's folder, whatever names them; wrong files are refused at once."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.evaluation.asking import plan_of
from orchestrator.sweep import expand

CURVE = "compute,ce\n1,4.5\n2,3.5\n"
LAW = "compute,ce\n1,4.5\n2,3.5\n3,3.1\n4,2.9\n"
LABELLED = "text,label\nof here,1\nof there,0\n"
PLAN = """
metrics: [downstream, probes]
downstream:
  compute_curve: tables/curve.csv
  compute_law: {table: tables/law.csv}
probes: {tasks: [tables/labelled.csv]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tables, and another one that one is in, where tables of these names say something else."""
    here = tmp_path / "here"
    for place, first in ((tmp_path / "there" / "tables", "7"), (here / "tables", "1")):
        place.mkdir(parents=True)
        (place / "curve.csv").write_text(CURVE.replace("1", first))
        (place / "law.csv").write_text(LAW.replace("1", first))
        (place / "labelled.csv").write_text(LABELLED)
    monkeypatch.chdir(tmp_path / "there")
    return here


def test_tables_and_tasks_lie_beside_the_file_that_names_them(folder: Path) -> None:
    sweep = folder / "sweep.yaml"
    indented = PLAN.strip().replace("\n", "\n  ")
    sweep.write_text(f"version: 1\nname: s\nevaluate:\n  {indented}\n")
    file = folder / "plan.yaml"
    asked = {
        "metrics": ["downstream", "probes"],
        "downstream": {"compute_curve": "tables/curve.csv", "compute_law": {"table": "tables/law.csv"}},
        "probes": {"tasks": ["tables/labelled.csv"]},
    }
    for plan in (expand(sweep).evaluation, plan_of(asked, where=str(file))):
        assert plan is not None
        assert plan.downstream.compute_curve == ((1.0, 4.5), (2.0, 3.5))
        assert plan.downstream.compute_law is not None
        assert plan.downstream.compute_law.table[0] == (1.0, 4.5)
        assert plan.probes.tasks[0].source == str(folder / "tables" / "labelled.csv")
    assert plan_of(asked).downstream.compute_curve == ((7.0, 4.5), (2.0, 3.5)), "without a file: the folder one is in"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("labelled.csv", "text,label\n", "labelled.csv has columns and no row"),
        ("labelled.csv", "text,label\n\n\n", "labelled.csv has columns and no row"),
        ("labelled.csv", "", "labelled.csv has no column 'text'"),
        ("curve.csv", "compute,ce\n", "curve.csv is no CSV file with numbers in the columns compute and ce"),
        ("law.csv", "compute,ce\n", "law.csv is no CSV file with numbers in the columns compute and ce"),
    ],
)
def test_a_table_without_a_row_is_refused(folder: Path, name: str, text: str, said: str) -> None:
    (folder / "tables" / name).write_text(text)
    asked = {
        "metrics": ["downstream", "probes"],
        "downstream": {"compute_curve": "tables/curve.csv", "compute_law": {"table": "tables/law.csv"}},
        "probes": {"tasks": ["tables/labelled.csv"]},
    }
    with pytest.raises(ConfigError) as refused:
        plan_of(asked, where=str(folder / "plan.yaml"))
    assert said in refused.value.message
