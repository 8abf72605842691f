"""The tables of scores: what was measured, on which text, how sure it is; and activations at equal L0."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape

from orchestrator.formatting import Interval
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.report.score_sections import rate_sections, score_sections
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def row(job_id: int, activation: str, l0: float, delta_ce: float, *, k: int = 8, seed: int = 0) -> JobMeasurement:
    unsure = (math.nan, math.nan)
    scores = {
        "delta_ce": Interval(delta_ce, 0.9 * delta_ce, 1.1 * delta_ce), "kl": Interval(delta_ce / 2, *unsure),
        "delta_ce first": Interval(9.0, 9.0, 9.0), "alive": Interval(math.nan, *unsure),
    }  # fmt: skip
    return measured(256, k, 0.25, job_id=job_id, activation=activation, l0=l0, seed=seed, scores=scores)


def sections(*rows: JobMeasurement, **texts: str) -> list[list[list[str]]]:
    """Return the text of the cells, by row, of each section that is returned."""
    return cells_of(score_sections(contents_of(*rows, **texts), rows))


def contents_of(*rows: JobMeasurement, **texts: str) -> Contents:
    return Contents(sweeps=(SweepText("s", {}, "", 0.0),), rows=rows, origins={}, fits=(), scored_on=texts)


def cells_of(parts: Sequence[str]) -> list[list[list[str]]]:
    found = []
    for part in parts:
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", part)]
        found.append([[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in line] for line in cells] or [[text_of(part)]])
    return found


def text_of(part: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", part))


def test_each_sae_has_its_main_scores_with_intervals_and_the_text_they_are_of() -> None:
    ((said,),), table = sections(row(7, "topk", 8.0, 0.5), downstream="8,192 tokens of a.txt")
    assert said.startswith("Measured on 8,192 tokens of a.txt. In brackets: 90% intervals")
    head, only = table
    assert head == ["job", "n", "k", "L0", "fvu", "alive", "delta_ce", "kl"]
    assert only == ["7", "256", "8", "8", "0.2500", "–", "0.500 [0.450, 0.550]", "0.250"]
    ((several,),), _ = sections(row(7, "topk", 8.0, 0.5), downstream="a", probes="b", n2g="a")
    assert several.startswith("Measured on downstream, n2g on a; probes on b.")
    assert sections(measured(64)) == []


def test_activations_are_compared_at_the_l0_of_topk() -> None:
    topk = [row(1 + seed, "topk", 8.0, 0.4 + seed, seed=seed) for seed in range(2)]
    relu = [
        row(10 + 2 * seed + i, "relu", l0, 1.5 * (0.4 + seed), seed=seed)
        for seed in range(2)
        for i, l0 in enumerate((4.0, 16.0))
    ]
    _, _, title, said, table = sections(*topk, *relu)
    assert (title, "seed by seed" in said[0][0]) == ([["Activations at equal L0"]], True)
    lines = {line[0]: line for line in table[1:]}
    assert lines["delta_ce"] == [
        "delta_ce", "relu", "256", "8", "0.7483", "1.50 [1.50, 1.50]", "2 seeds", "1, 10, 11, 2, 12, 13",
    ]  # fmt: skip
    assert lines["fvu"][5] == "1 [1, 1]", "they have one fvu"


def test_the_best_rate_is_told_by_place_and_whether_it_is_at_an_end() -> None:
    rows = [
        measured(64, 8, fvu, job_id=10 * layer + at, lr=lr, hook=f"resid_post of h.{layer}")
        for layer, losses in ((0, (0.5, 0.4, 0.45)), (1, (0.6, 0.5, 0.4)))
        for at, (lr, fvu) in enumerate(zip((0.001, 0.002, 0.004), losses, strict=True))
    ]
    *_, table = cells_of(rate_sections(contents_of(*rows)))
    assert table[1:] == [
        ["resid_post of h.0", "64", "8", "0", "0.00200", "0.4000", "1.25 at 0.00100, 1.12 at 0.00400", "no", "1"],
        ["resid_post of h.1", "64", "8", "0", "0.00400", "0.4000", "1.50 at 0.00100, 1.25 at 0.00200", "yes", "12"],
    ]
    assert rate_sections(contents_of(*rows[:3])) == [], "of one place the figure of rates says it"
    assert rate_sections(contents_of(rows[0], rows[3])) == []
    others = [replace(row, job_id=100 + row.job_id, l0=4.0) for row in rows]
    assert rate_sections(contents_of(*rows, *others)) == [], "jobs of one rate differ in something else"
