"""A law is one entry of the registry: with it a seventh is fitted, printed, drawn and reported; the help names all."""

from collections.abc import Iterator

import click
import pytest

from orchestrator.cli.commands.fit_command import fit as fit_command
from orchestrator.cli.commands.report_commands import plot as plot_command
from orchestrator.cli.display.fit_tables import fit_lines
from orchestrator.report.collect import fit_everywhere
from orchestrator.report.findings_text import findings
from orchestrator.scaling.fit.eligible_jobs import why_not_ended
from orchestrator.scaling.fit.fitting import fit, fit_laws
from orchestrator.scaling.fit.missing_jobs import like_the_others
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.fit.predict import predict
from orchestrator.scaling.fit.sample import Observation, Sample, group, per_k, subject_of
from orchestrator.scaling.forms import LINE, Form
from orchestrator.scaling.law import Figure, Law, Quantity
from orchestrator.scaling.laws.registry import LAWS, law_named
from orchestrator.scaling.plots import law_plots
from orchestrator.scaling.plots.all_plots import draw, draw_all, figure_names, law_of
from orchestrator.scaling.types import Excluded, JobMeasurement
from tests import planted_laws as planted
from tests.unit.orchestrator.report.test_page import contents, page_of

ROWS = planted.grid(ks=(4,))


def _samples(kept: list[JobMeasurement], excluded: list[Excluded], options: FitOptions) -> list[Sample]:
    return [
        Sample(group(k, options), subject_of(rows), tuple(map(_observation, rows)), tuple(excluded), k=k)
        for k, rows in per_k(kept).items()
    ]


def _observation(row: JobMeasurement) -> Observation:
    n = float(row.n_latents or 0)
    return Observation((row.job_id,), n, 1.0, row.k, row.subject, row.dead_share or 0.0, cell=(n, 1.0))


DEAD_BY_SIZE = Law(
    key="dn",
    title="D(N)",
    about="dead latents against dictionary size",
    forms=(Form("pure", LINE, (), ("A", "r"), ("exp", "as is"), "dead share = A·n^r"),),
    exponent="r",
    finding="the share of dead latents grows as n^r",
    needs="ended jobs at 3 sizes or more",
    why_excluded=lambda row, _: why_not_ended(row) or ("" if row.dead_share else "it has no dead latents"),
    samples=_samples,
    missing_job=like_the_others,
    quantity=Quantity("dead share"),
    figures=(Figure("dn", law_plots.against_size),),
)


@pytest.fixture
def seventh() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAWS, DEAD_BY_SIZE.key, DEAD_BY_SIZE)
        yield


@pytest.mark.usefixtures("seventh")
def test_a_seventh_law_is_fitted_and_predicts() -> None:
    assert law_named("DN") == "dn"
    [found] = fit("dn", ROWS, n_bootstrap=60)
    assert found.jobs == tuple(row.job_id for row in ROWS)
    assert 0 < found.coefficients["r"].value < 1
    assert predict(LAWS[found.law], found, x=2048).value > predict(LAWS[found.law], found, x=1024).value
    refused = fit_laws(["dn"], ROWS[:2], FitOptions(), n_bootstrap=60, seed=0).refused[0].error
    assert refused.message.startswith("D(N) (k=4) needs ended jobs at 3 sizes or more; it has n = 64, 128")
    assert "sae.n_latents=256 sae.k=4" in refused.hint


@pytest.mark.usefixtures("seventh")
def test_a_seventh_law_is_printed() -> None:
    [found] = fit("dn", ROWS, n_bootstrap=60)
    lines = fit_lines(found, 3, width=100)
    assert "D(N)  k=4" in lines[0]
    assert lines[1].strip().startswith("dead share = A·n^r")


@pytest.mark.usefixtures("seventh")
def test_a_seventh_law_is_drawn() -> None:
    fits = fit("dn", ROWS, n_bootstrap=60)
    assert "dn" in figure_names()
    assert law_of("dn") == "dn"
    drawing = draw("dn", ROWS, fits)
    assert drawing
    assert drawing.title == "D(N): dead latents against dictionary size"
    assert drawing.jobs == tuple(row.job_id for row in ROWS)
    assert {"dn", "residuals"} <= {one.name for one in draw_all(ROWS, fits)}


@pytest.mark.usefixtures("seventh")
def test_a_seventh_law_is_reported() -> None:
    fits, missing = fit_everywhere("dn", ROWS)
    assert missing is None
    page = contents(ROWS, fits=planted.stored(fits))
    assert any("the share of dead latents grows as n^r" in one for one in findings(page))
    text = page_of(page)
    assert 'id="figure-dn"' in text
    assert "D(N), k = 4" in text


def test_each_law_is_whole() -> None:
    for key, law in LAWS.items():
        assert law.key == key
        assert all(law.exponent in form.names for form in law.forms)
        assert {form.size for form in law.forms} == {len(form.kinds) for form in law.forms}
    names = figure_names()
    assert len(names) == len(set(names))


def test_the_help_names_every_law_and_every_figure() -> None:
    """Help loads neither the registry nor numpy: its words are written out."""
    fit_help, plot_help = str(fit_command.help), str(plot_command.help)
    option = next(one for one in fit_command.params if one.name == "laws")
    assert isinstance(option, click.Option)
    assert str(option.help).partition(";")[0].replace(" or ", ", ").split(", ") == list(LAWS)
    for law in LAWS.values():
        assert f"{law.key} is " in fit_help
        assert law.title in fit_help or law.compares_subjects
    listed = plot_help.partition("Figures: ")[2].partition(". ")[0].replace(" (laws)", "")
    assert " ".join(listed.split()).split(", ") == figure_names()
