"""Old results are judged anew from their stored curves: nothing is trained."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, update

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.curves.point import evaluation_grid
from orchestrator.database.engine import connect, transaction
from orchestrator.database.models import ConvergenceRow, ResultRow
from orchestrator.settings import Settings
from tests.queue_shorthand import claim, enqueue, point, result

BEFORE = Path(__file__).parents[1] / "assets" / "before_second_edition"
GRID = evaluation_grid(first_point_tokens=8192, batch_tokens=2048, max_tokens=2**22)


def _ended(engine: Engine, losses: list[float], **values: object) -> int:
    lease = claim(engine).lease
    queue.record(engine, lease, [point(t, loss) for t, loss in zip(GRID, losses, strict=True)])
    queue.finish(engine, lease, result(tokens_seen=GRID[-1], **values))
    return lease.job_id


def test_what_an_earlier_version_stored_becomes_what_this_one_finds(engine: Engine) -> None:
    enqueue(engine, 4)
    good = _ended(engine, [0.3 * (1 + 0.2 * (t / 8192) ** -1.0) for t in GRID])
    idle = _ended(engine, [1.13] * len(GRID), untrained_fvu=1.144)
    high = _ended(engine, [2e6] * len(GRID), outcome="max_tokens", untrained_fvu=0.36)
    gone = _ended(engine, [0.5] * (len(GRID) - 1) + [float("nan")], outcome="diverged", artifact_uri=None)
    right = {job: results.convergence(engine, job) for job in (good, gone)}
    (limit,) = (row.l_inf for row in results.jobs(engine, ids=[good]))
    with transaction(engine) as session:
        session.execute(update(ResultRow).values(l_inf=0.5, l_inf_se=0.1))
        session.execute(update(ConvergenceRow).values(tokens=9.0, lower_bound=None, low=None, high=None))
        session.execute(delete(ConvergenceRow).where(ConvergenceRow.epsilon > 0.01))
    found = queue.reanalyse(engine)
    assert found == (4, 4, {idle: ("converged", "not_learning"), high: ("max_tokens", "diverged")})
    assert {job: results.convergence(engine, job) for job in (good, gone)} == right
    rows = {row.id: row for row in results.jobs(engine)}
    assert [rows[job].outcome for job in (good, idle, high, gone)] == [
        "converged",
        "not_learning",
        "diverged",
        "diverged",
    ]
    assert (rows[good].l_inf, rows[idle].l_inf, rows[high].l_inf, rows[gone].l_inf) == (limit, None, None, None)
    assert limit == pytest.approx(0.3, rel=1e-3)
    least, most = rows[good].tokens_low, rows[good].tokens_high
    assert least is not None
    assert most is not None
    assert least <= (rows[good].tokens_to_convergence or 0.0) <= most
    assert queue.reanalyse(engine) == (4, 0, {}), "twice is once"


def test_a_database_of_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(BEFORE / "artifacts", home / "artifacts")
    connection = sqlite3.connect(home / "orch.db")
    connection.executescript((BEFORE / "orch.sql").read_text().replace("{home}", str(home)))
    connection.close()
    monkeypatch.setenv("ORCH_HOME", str(home))
    assert run(["db", "upgrade"]) == 0
    engine = connect(Settings(home=home).database)
    before = {row.id: row for row in results.jobs(engine, states=["succeeded"])}
    curves = {job: results.curve(engine, job) for job in before}
    capsys.readouterr()
    assert run(["db", "reanalyse"]) == 0
    assert f"{len(before)} results judged anew" in capsys.readouterr().out
    after = {row.id: row for row in results.jobs(engine, states=["succeeded"])}
    assert {job: results.curve(engine, job) for job in after} == curves
    for job, row in after.items():
        assert row.outcome == before[job].outcome
        assert (row.tokens_seen, row.fvu) == (before[job].tokens_seen, before[job].fvu)
        assert (row.tokens_to_convergence is None) == (row.tokens_low is None)
    engine.dispose()
