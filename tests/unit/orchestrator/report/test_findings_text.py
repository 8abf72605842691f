"""The headline findings: nothing is called lowest across L0, or across what jobs read."""

import re

from orchestrator.report.findings_text import findings
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def said(*rows: JobMeasurement) -> list[str]:
    found = findings(Contents(sweeps=(SweepText("s", {}, "", 0.0),), rows=rows, origins={}, fits=()))
    return [re.sub(r"<[^>]*>", "", one) for one in found]


def test_the_lowest_fvu_is_said_for_each_l0() -> None:
    relu = measured(256, 8, 0.01, l0=100.8, activation="relu", job_id=1)
    topk = [measured(n, 8, fvu, l0=l0, job_id=n) for n, fvu, l0 in ((64, 0.3, 7.9), (128, 0.2, 8.0))]
    _, *found = said(relu, *topk)
    assert found == [
        "The lowest fvu at L0 8: 0.2000, at n = 128, k = 8: job 128, of 2 jobs.",
        "The lowest fvu at L0 101: 0.01000, at n = 256, k = 8: job 1.",
    ]


def test_the_lowest_fvu_is_said_for_each_place() -> None:
    rows = [measured(64, 8, 0.3, l0=8.0, hook=f"layer {at}", job_id=at) for at in (1, 2, 3)]
    (_, listed) = said(*rows)
    assert listed.startswith("The lowest fvu at each L0: L0 8, layer 1: 0.3000, at n = 64, k = 8: job 1")
    assert "layer 3" in listed


def test_many_l0_are_not_all_listed() -> None:
    (_, listed) = said(*(measured(64, 8, 0.3, l0=2.0**at) for at in range(20)))
    assert listed.count("at n = 64") == 12
    assert listed.endswith("and 8 more")


def test_repeated_text_is_said() -> None:
    found = said(measured(l0=8.0, job_id=1, trainable_tokens=21), measured(l0=8.0, job_id=2, trainable_tokens=901))
    assert "Repeated text: 1 job read the text more than once: 42.9 passes over 21 trainable tokens (job 1)." in found
