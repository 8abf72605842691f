"""The report says of SAEs of several layers what holds and what does not, and has the paper's table."""

import re
from html import unescape

from orchestrator.report.cross_sections import cross_findings, cross_sections
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured
from tests.layer_scores import at_layers


def contents(*rows: JobMeasurement) -> Contents:
    texts = {"reconstruction": "8,192 tokens of a.txt", "downstream": "8,192 tokens of a.txt", "probes": "b"}
    return Contents(sweeps=(SweepText("s", {}, "", 0.0),), rows=rows, origins={}, fits=(), scored_on=texts)


def text(part: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", part))


ROWS = [
    row
    for seed in (0, 1)
    for row in (
        at_layers((0, 1), {"fvu": [0.2, 0.3 + 0.01 * seed], "l1": [1.0, 3.0]}, job_id=1 + 10 * seed, seed=seed),
        at_layers((0,), {"fvu": [0.1, 0.9]}, job_id=2 + 10 * seed, seed=seed),
        at_layers((1,), {"fvu": [0.41, 0.4]}, job_id=3 + 10 * seed, seed=seed),
    )
]


def test_findings_say_what_holds_and_what_does_not_on_which_text() -> None:
    flatter, at_home, beside = map(text, cross_findings(contents(*ROWS)))
    assert flatter.startswith(
        "SAEs of several layers vary less from layer to layer than each SAE of one layer: holds in 1 of 2 comparisons; "
        "coefficient of variation ÷ that of the SAE of one layer, below 1 where it holds; on 8,192 tokens of a.txt."
    )
    assert "FVU (n = 256, k = 8, 2 seeds): holds against layer 0 (0.260 [0.205, 0.330])" in flatter
    assert "; not against layer 1 (" in flatter
    assert "holds in 2 of 2 comparisons" in at_home
    assert "holds at layers 0, 1 (0.244 [0.244, 0.244], 0.444 [0.444, 0.444])." in at_home
    assert "lower at layer 1 (" in beside
    assert "higher at layer 0 (2 [2, 2])" in beside


def test_the_tables_have_every_layer_with_its_interval() -> None:
    title, _, paper, second, said, matrix = cross_sections(contents(*ROWS))
    assert (text(title), text(second)) == ("SAEs of several layers", "Each SAE at every layer")
    (row,) = re.findall(r"<tr>(<td.*?)</tr>", paper)
    assert [text(cell) for cell in re.findall(r"<td.*?</td>", row)][:7] == [
        "layers 0, 1", "m", "256", "2", "8", "2", "0.253 [0.237, 0.268]",
    ]  # fmt: skip
    assert text(said).startswith("Measured on 8,192 tokens of a.txt.")
    lines = [
        [text(cell) for cell in re.findall(r"<td.*?</td>", line)] for line in re.findall(r"<tr>(<td.*?)</tr>", matrix)
    ]
    assert [line[1] for line in lines[:3]] == ["layers 0, 1", "layer 0", "layer 1"]
    assert lines[1][4:] == ["0.100", "0.900", "2, 12"]
    assert "[0.273, 0.337]" in matrix, "the interval of a layer is there to be pointed at"


def test_nothing_is_said_where_nothing_was_measured_at_several_layers() -> None:
    plain = contents(measured(64), at_layers((0,), {"fvu": [0.1]}))
    assert cross_findings(plain) == []
    assert cross_sections(plain) == []
    alone = contents(ROWS[0])
    assert cross_findings(alone) == []
    assert len(cross_sections(alone)) == 6
