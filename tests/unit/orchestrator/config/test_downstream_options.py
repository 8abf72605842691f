"""Tables of compute: given, or read from a file, whose content is what is kept."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.evaluation.downstream import DownstreamOptions


def test_a_csv_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,compute,ce\n1,1e18,4.5\n2,1e19,3.5\n")
    table = ((1e18, 4.5), (1e19, 3.5))
    read = DownstreamOptions.model_validate({"compute_curve": str(path)})
    assert read == DownstreamOptions(compute_curve=table)
    path.unlink()
    assert DownstreamOptions.model_validate_json(read.part_json) == read


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"compute_curve": "nowhere.csv"}, "cannot read nowhere.csv: No such file"),
        ({"compute_curve": [[1.0, 2.0]]}, "at least two checkpoints"),
        ({"compute_law": {}}, "give e and alpha, or a table"),
        ({"compute_law": {"e": 1.0}}, "give e and alpha, or a table"),
        ({"compute_law": {"e": 1.0, "alpha": 0.3, "table": [[1.0, 2.0]]}}, "give e and alpha, or a table"),
        ({"compute_law": {"table": [[1.0, 2.0], [2.0, 1.5]]}}, "at least four models"),
        ({"test_k": [0]}, "greater than 0"),
    ],
)
def test_what_does_not_fit_is_said(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DownstreamOptions.model_validate(asked)


def test_a_file_without_the_columns_is_said(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    for content in ("a,b\n1,2\n", "compute,ce\n1,x\n", "compute,ce\n1\n", "compute,ce\n", ""):
        path.write_text(content)
        with pytest.raises(ValidationError, match="no CSV file with numbers in the columns compute and ce"):
            DownstreamOptions.model_validate({"compute_curve": str(path)})
