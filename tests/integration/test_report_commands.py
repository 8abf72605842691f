"""`orch plot` and `orch report` on a real database; the trainer is played."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.commands.report_commands import file_name
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.database.schema import open_database
from orchestrator.fits import store
from orchestrator.report import collect_contents
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests import planted_laws as planted
from tests.queue_shorthand import claim, result
from tests.worker_shorthand import items, let_commands_reach

pytestmark = pytest.mark.databases("sqlite")  # what is computed and drawn does not depend on it
on_both = pytest.mark.databases("sqlite", "postgresql")

Capture = pytest.CaptureFixture[str]
SIZES, KS = (64, 128, 256, 512), (4, 8)


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(settings, monkeypatch)
    engine = open_database(settings)
    yield engine
    engine.dispose()


def enqueue(
    engine: Engine, name: str = "laws", *, subject: str = "shipped:stdlib-gpt2", ks: tuple[int, ...] = KS
) -> None:
    """Queue a grid of n and k."""
    configs = [
        parse({"subject": {"model": subject}, "sae": {"n_latents": n, "k": k}, "optimizer": {"lr": 0.01}})
        for k in ks
        for n in SIZES
    ]
    text = f"name: laws\noverrides: {{subject.model: {subject}}}"
    queue.enqueue(engine, Sweep(name, tuple(configs), labels={"who": "<script>alert(1)</script>"}, text=text))


def train(engine: Engine, number: int, *, with_curve: bool = True) -> None:
    """Play the trainer of so many jobs: each follows the planted law."""
    for _ in range(number):
        claimed = claim(engine)
        n, k = claimed.job_config.sae.n_latents or 0, claimed.job_config.sae.k
        row = planted.job(claimed.lease.job_id, n, k)
        facts = {
            "n_latents": n, "d_model": planted.D_MODEL, "lr": 0.01, "git_commit": "a" * 40,
            "versions": {"torch": "2.13"}, "subject": {"parameters_run": 793_088, "sha256": "b" * 64},
        }  # fmt: skip
        queue.begin(engine, claimed.lease, facts, 0)
        if with_curve:
            queue.record(engine, claimed.lease, list(row.curve))
        tokens = row.curve[-1].tokens_seen
        queue.finish(engine, claimed.lease, result(tokens_seen=tokens))


@on_both
def test_the_page_of_a_sweep(engine: Engine, settings: Settings, capsys: Capture) -> None:
    enqueue(engine)
    train(engine, 8)
    assert run(["report", "laws"]) == 0
    place = Path(capsys.readouterr().out.strip())
    assert place == settings.home / "reports" / "laws.html"
    text = place.read_text()
    assert "<script>alert" not in text
    for said in ("L(N) at k = 4", "L(N) at k = 8", "L(N,K)", "T(N) at k = 8", 'id="job-8"', "a" * 40, "name: laws"):
        assert said in text
    before = store.history(engine, sweep="laws")
    assert {one.fit.law for one in before} >= {"ln", "lc", "lnk", "tn"}
    assert run(["report", "laws", "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    assert store.history(engine, sweep="laws") == before, "nothing has ended since: the stored fits are used"


@on_both
def test_fits_are_renewed_when_more_jobs_have_ended(engine: Engine, tmp_path: Path) -> None:
    enqueue(engine)
    train(engine, 4)
    first = collect_contents(engine, ["laws"])
    assert [fit.jobs for fit in first.laws if fit.law == "ln"] == [(1, 2, 3, 4)]
    assert "lnk" in first.missing
    train(engine, 4)
    second = collect_contents(engine, ["laws"])
    assert [fit.jobs for fit in second.laws if fit.law == "ln"] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert "lnk" not in second.missing
    old = next(one for one in store.history(engine, sweep="laws") if one.id == first.fits[0].id)
    assert old.superseded_by is not None, "superseded, not overwritten"
    last = results.curve(engine, 1)[-1]
    assert second.origins[1].flops == (last.flops_dense, last.flops_executed)


def test_a_law_of_curves_is_renewed_when_they_have_grown(engine: Engine) -> None:
    """While jobs ran, L(C) stayed that of the first report, beside the curves of the present."""
    enqueue(engine, ks=(4,))
    train(engine, 3)
    claimed = claim(engine)
    points = planted.job(claimed.lease.job_id, claimed.job_config.sae.n_latents or 0, 4).curve
    queue.begin(engine, claimed.lease, {"d_model": planted.D_MODEL}, 0)
    queue.record(engine, claimed.lease, list(points[:8]))
    first, again = (collect_contents(engine, ["laws"], laws=["ln", "lc"]).fits for _ in range(2))
    assert [one.id for one in again] == [one.id for one in first], "nothing has changed"
    queue.record(engine, claimed.lease, list(points[8:]))
    second = {one.fit.law: one.id for one in collect_contents(engine, ["laws"], laws=["ln", "lc"]).fits}
    before = {one.fit.law: one.id for one in first}
    assert second["lc"] > before["lc"]
    assert second["ln"] == before["ln"], "it reads jobs that ended"


def test_figures_as_files(engine: Engine, tmp_path: Path, capsys: Capture) -> None:
    enqueue(engine)
    train(engine, 8)
    assert run(["plot", "laws", "--folder", str(tmp_path / "new"), "-o", "json"]) == 0
    rows = items(capsys)
    assert {row["figure"] for row in rows} >= {"ln", "lc", "lnk", "tn", "lr", "curves", "dead", "residuals"}
    assert rows[0]["jobs"] == list(range(1, 9))
    assert all(Path(row["file"]).read_text().startswith("<?xml") for row in rows)
    assert run(["plot", "laws", "--figure", "ln", "--format", "png", "--folder", str(tmp_path)]) == 0
    (file,) = capsys.readouterr().out.split()
    assert Path(file) == tmp_path / "laws-ln.png"
    assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_two_sweeps_are_one_picture(engine: Engine, capsys: Capture, tmp_path: Path) -> None:
    enqueue(engine, "one", ks=(4,))
    enqueue(engine, "two", ks=(8,))
    train(engine, 8)
    assert run(["plot", "one", "two", "--figure", "ln", "--folder", str(tmp_path), "-o", "json"]) == 0
    (row,) = items(capsys)
    assert row["jobs"] == list(range(1, 9))
    assert {one.fit.sweeps for one in store.newest(engine, sweep="one")} == {("one", "two")}


def test_mixed_subjects_have_a_law_each(engine: Engine, capsys: Capture) -> None:
    enqueue(engine, ks=(4,))
    enqueue(engine, subject="other", ks=(4,))
    train(engine, 8)
    found = collect_contents(engine, ["laws"])
    assert [(fit.subject, len(fit.jobs)) for fit in found.laws if fit.law == "ln"] == [
        ("other", 4),
        ("shipped:stdlib-gpt2", 4),
    ]
    assert run(["report", "laws"]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "The jobs are of 2 subjects" in text
    assert "L(N) at k = 4 of other" in text


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["report", "nothing"], 3, "there is no sweep 'nothing'"),
        (["plot", "nothing"], 3, "there is no sweep 'nothing'"),
        (["plot", "laws", "--figure", "lcc"], 2, "Did you mean 'lc'?"),
        (["plot", "laws"], 4, "there is nothing to draw of laws: none of its jobs has a curve yet"),
        (["plot", "laws", "--figure", "ln"], 4, "there is nothing to draw of laws: L(N)"),
        (["report"], 2, "Missing argument"),
        (["plot", "laws", "--format", "gif"], 2, "'svg', 'png'"),
    ],
)
def test_clear_errors(engine: Engine, capsys: Capture, arguments: list[str], code: int, says: str) -> None:
    enqueue(engine)
    assert run(arguments) == code
    assert says in capsys.readouterr().err


def test_a_figure_with_nothing_to_draw_says_what_it_lacks(engine: Engine, capsys: Capture) -> None:
    """That none of its jobs had a curve was said of jobs that had one."""
    enqueue(engine, ks=(4,))
    assert run(["plot", "laws", "--figure", "layers"]) == 4
    assert "nothing to draw of laws: none of its jobs has a curve yet\norch status laws" in capsys.readouterr().err
    train(engine, 4)
    for figure, lacks, hint in (
        ("layers", "no SAE has scores of the metric family layers", "orch evaluate laws --metrics layers"),
        ("downstream", "two SAEs with scores", "orch evaluate laws --metrics downstream"),
        ("cross", "no SAE was evaluated across layers", "orch evaluate laws --across-layers"),
        ("frontier", "no job that has ended has an L0 other than its k", "orch status laws"),
    ):
        assert run(["plot", "laws", "--figure", figure]) == 4
        said = capsys.readouterr().err
        assert lacks in said
        assert said.endswith(f"{hint}\n")
        assert "curve" not in said


def test_a_page_before_anything_has_ended(engine: Engine, capsys: Capture) -> None:
    enqueue(engine)
    assert run(["report", "laws"]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "8 jobs: 8 queued. No job has ended yet" in text
    assert "<svg" not in text


def test_a_page_of_jobs_without_curves(engine: Engine, capsys: Capture) -> None:
    enqueue(engine)
    train(engine, 8, with_curve=False)
    assert run(["report", "laws"]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "No curve is stored of 8 jobs: " in text


def test_passwords_do_not_reach_the_page(engine: Engine, capsys: Capture) -> None:
    enqueue(engine, subject="https://me:hunter2@host/model", ks=(4,))
    train(engine, 4)
    assert run(["report", "laws", "-o", "-"]) == 0
    text = capsys.readouterr().out
    assert "hunter2" not in text
    assert "https://me:***@host/model" in text
    assert "overrides: {subject.model: https://me:***@host/model}" in text, "in the sweep's file too"


@pytest.mark.parametrize(
    ("names", "file"),
    [(["a"], "a"), (["a", "b", "a"], "a+b"), (["widths / k"], "widths-k"), (["../../etc"], "etc"), (["…"], "sweep")],
)
def test_names_of_files(names: list[str], file: str) -> None:
    assert file_name(names) == file


@pytest.mark.parametrize("arguments", [["plot", "laws", "--folder"], ["report", "laws", "-o"]])
def test_a_place_that_cannot_be_is_told_with_what_to_do(
    engine: Engine, capsys: Capture, tmp_path: Path, arguments: list[str]
) -> None:
    enqueue(engine)
    train(engine, 2)
    (tmp_path / "file").write_text("")
    assert run([*arguments, str(tmp_path / "file" / "below")]) == 1
    said = capsys.readouterr()
    assert "Not a directory" in said.err or "File exists" in said.err
    assert "Name a file or folder that is there" in said.err


def test_many_jobs_have_a_file_beside_the_page(
    engine: Engine, settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.scaling.plots.sampling.MOST_SHOWN", 5)
    enqueue(engine)
    train(engine, 8)
    assert run(["report", "laws"]) == 0
    place = Path(capsys.readouterr().out.strip())
    assert len(place.with_suffix(".csv").read_text().splitlines()) == 1 + 8
    assert "5 of 8 curves shown; all rows in " in place.read_text()
