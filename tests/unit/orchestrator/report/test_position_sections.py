"""What is said of position 0 follows from the numbers."""

import re
from dataclasses import replace

import pytest

from orchestrator.formatting import Interval
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.report.position_sections import position_findings, position_sections
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def row(
    job_id: int = 1, *, fvu: float = 0.5, loss: float = 2.0, norm: float = 20.0, sure: float = 0.1,
    hook: str = "resid_post of h.3",
) -> JobMeasurement:  # fmt: skip
    """Return an SAE with these ratios of position 0 to the others."""
    scores = {}
    for name, ratio in {"fvu raw,": fvu, "delta_ce": loss, "kl": loss, "residual_norm": norm}.items():
        for part, value in {"first": ratio, "rest": 1.0, "positions=1": 1.5, "positions=2-3": 1.0}.items():
            scores[f"{name} {part}"] = Interval(value, value * (1 - sure), value * (1 + sure))
    return measured(64, 8, job_id=job_id, scores=scores, hook=hook)


def contents(*rows: JobMeasurement) -> Contents:
    texts = {"downstream": "8,191 tokens of a.txt"}
    return Contents(sweeps=(SweepText("s", {}, "", 0.0),), rows=rows, origins={}, fits=(), scored_on=texts)


def said(*rows: JobMeasurement) -> str:
    (found,) = position_findings(contents(*rows))
    return re.sub(r"<[^>]*>", "", found)


def test_it_behaves_as_published_where_it_is_easy_costly_and_of_large_norm() -> None:
    text = said(row(1), row(2))
    assert text.startswith(
        "Position 0 behaves as in Gao et al. Position 0 is compared with the other positions, on 8,191 tokens of "
        "a.txt, for 2 SAEs. Its fvu is lower for 2 and higher for 0. Its ΔCE and KL are both higher for 2; at least "
        "one of the two is lower for 0. Lower and higher mean that the 90% intervals do not meet. Its norm is 20 times "
        "that of the others. Gao et al. found, at all but the first and the last layers of GPT-2 small, that position "
        "0 is easier to reconstruct than the others, costs more to replace, and has a norm above 10 times theirs."
    )
    assert "likely reason" not in text


@pytest.mark.parametrize(
    ("sae", "reason"),
    [
        (row(loss=1.0, norm=2.2), "Where its norm is not that large and it costs no more, a likely reason"),
        (row(loss=2.0, norm=2.2), "Where its norm is not that large and it costs more, its prediction rests"),
        (row(loss=0.5), "Where its norm is large and its loss is not"),
        (row(fvu=1.5), "Where it is no easier to reconstruct"),
        (row(sure=0.6), "Where it is no easier to reconstruct"),
    ],
)
def test_where_it_does_not_the_numbers_say_why(sae: JobMeasurement, reason: str) -> None:
    text = said(sae)
    assert text.startswith("Position 0 does not behave as in Gao et al. ")
    assert "for 1 SAE. Its fvu is lower for " in text
    assert reason in text


def test_of_several_those_that_differ_are_named() -> None:
    text = said(row(1), row(2, norm=3.0, loss=1.0))
    assert text.startswith("Position 0 behaves as in Gao et al. in 1 of 2 SAEs")
    assert "Its norm is 3 to 20 times that of the others." in text
    assert text.endswith("Otherwise: 2.")


def test_nothing_is_said_of_what_a_block_adds_or_without_scores() -> None:
    assert position_findings(contents(row(hook="mlp_delta of h.3"), measured(64))) == []
    assert position_sections(contents(measured(64))) == []


def test_the_table_has_position_0_the_rest_and_each_bucket_with_intervals() -> None:
    *_, table = position_sections(contents(row(7)))
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", table)]
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in line] for line in lines]
    assert cells[0] == ["score", "job", "n", "k", "position 0", "rest", "0 ÷ rest", "1", "2–3"]
    assert cells[1] == ["fvu", "7", "64", "8", "0.500 [0.450, 0.550]", "1 [0.900, 1.10]", "0.500", "1.50", "1"]
    assert [line[0] for line in cells[1:]] == ["fvu", "ΔCE", "KL", "norm"]
    assert 'title="1.50 [1.35, 1.65]"' in table


def test_a_bucket_that_ends_earlier_for_losses_is_one_column() -> None:
    """The last position of a context predicts nothing."""
    sae = row(7)
    scores = {name.replace("2-3", "2-2") if name.startswith("kl") else name: one for name, one in sae.scores.items()}
    *_, table = position_sections(contents(replace(sae, scores=scores)))
    assert table.count("<th ") == 9
    assert "–</td>" not in table, "every cell is filled"
