"""SAEs beside channels, random directions, ablations and constants: counted by paired intervals."""

import re

from orchestrator.formatting import Interval
from orchestrator.report.baseline_sections import baseline_findings, baseline_sections
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def row(job_id: int, *, gain: float, ratio: float, **values: float) -> JobMeasurement:
    """Return an SAE whose best latent has this much over the best channel, and whose latents are so much sparser."""
    unsure = {
        "probe_loss": 0.4, "probe_loss channels": 0.4 + gain, "probe_gain channels": gain,
        "ablation_sparsity from start": 0.5 * ratio, "ablation_sparsity channels from start": 0.5,
        "ablation_ratio channels from start": ratio, "delta_ce": 0.7, "delta_ce zero ablation": 5.0,
        "recovered_ce": 0.86,
    }  # fmt: skip
    scores = {name: Interval(value, value - 0.05, value + 0.05) for name, value in unsure.items()}
    return measured(64, 8, job_id=job_id, scores=scores, **values)


def contents(*rows: JobMeasurement) -> Contents:
    texts = dict.fromkeys(("probes", "ablation"), "8,191 tokens of a.txt")
    return Contents(sweeps=(SweepText("s", {}, "", 0.0),), rows=rows, origins={}, fits=(), scored_on=texts)


def plain(text: str) -> str:
    return re.sub(r"<[^>]*>", "", text)


ROWS = (row(1, gain=0.1, ratio=0.6), row(2, gain=-0.1, ratio=1.2), row(3, gain=0.02, ratio=0.7))


def test_latents_are_counted_against_channels() -> None:
    (found,) = map(plain, baseline_findings(contents(*ROWS)))
    assert found.endswith(
        "by 90% intervals of what one has over the other on the same draws of 8,191 tokens of a.txt."
        "probe loss, against residual channels: better in 1 of 3 SAEs, worse in 1, not told apart in 1."
        "ablation sparsity, from the start on, against residual channels: better in 2 of 3 SAEs, worse in 1, not told "
        "apart in 0."
    )
    assert baseline_findings(contents(measured(64))) == baseline_sections(contents(measured(64))) == []


def test_of_several_rates_the_best_sae_counts() -> None:
    rates = (row(4, gain=0.1, ratio=0.6, lr=0.001, fvu=0.3), row(5, gain=-0.1, ratio=1.2, lr=0.002, fvu=0.4))
    (found,) = map(plain, baseline_findings(contents(*rates)))
    assert "better in 1 of 1 SAE, worse in 0" in found


def test_the_tables_have_each_baseline_and_what_each_sae_has_over_it() -> None:
    _, _, table, _, each = baseline_sections(contents(*ROWS))
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", table)]
    cells = [[plain(cell) for cell in line] for line in lines]
    assert cells[1] == ["ΔCE", "zero ablation", "5 [4.95, 5.05]", "0.700 [0.650, 0.750]", "3", "0", "0", "–"]
    assert cells[2] == [
        "probe loss",
        "residual channels",
        "0.300 to 0.500",
        "0.400 [0.350, 0.450]",
        "1",
        "1",
        "1",
        "2, 3",
    ]
    assert 'title="0.300 [0.250, 0.350] to 0.500 [0.450, 0.550]"' in table
    assert "−0.100 [−0.150, −0.0500]" in plain(each)
    assert "1.20 [1.15, 1.25]" in plain(each)


def test_of_very_many_saes_a_sample_is_listed_and_all_are_counted() -> None:
    many = [row(at, gain=0.1, ratio=0.6, seed=at) for at in range(300)]
    _, _, table, said, each = baseline_sections(contents(*many))
    assert plain(said).endswith("200 of 300 SAEs shown")
    assert len(re.findall("<tr", each)) == 201
    assert ">300<" in table
