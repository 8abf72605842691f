"""A data folder that the version before left behind: it is shown as it was, and its jobs are trained to their ends."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.config.job import JobConfig
from orchestrator.database.schema import HEAD, current
from orchestrator.fits import store
from orchestrator.results.stored_configs import configs
from orchestrator.settings import Settings
from tests.small_world import World, small_world

BEFORE = Path(__file__).parents[1] / "assets" / "before_second_edition"
ENDED, STOPPED, QUEUED, PAUSED, CANCELLED = (1, 2, 3, 4, 5), 6, 7, 8, 9
CAPTURED_AT = 23_424


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the folder as that version left it, nothing of it upgraded."""
    home = tmp_path / "home"
    shutil.copytree(BEFORE / "artifacts", home / "artifacts")
    connection = sqlite3.connect(home / "orch.db")
    connection.executescript((BEFORE / "orch.sql").read_text().replace("{home}", str(home)))
    connection.close()
    assert current(Settings(home=home)) == "0005"
    return home


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    with small_world(home, poll_seconds=0.1) as world:
        yield world


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_upgraded_and_shown_as_it_was(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(home))
    rows = said(capsys, "status", "-o", "json")["items"]
    before = json.loads((BEFORE / "status.json").read_text().replace("{home}", str(home)))
    assert before[5]["state"] == "queued"
    before[5]["tokens_seen"] = 23_424  # its checkpoint's, from where it goes on; before it was its last point's
    assert [{name: row[name] for name in old} for row, old in zip(rows, before, strict=True)] == before
    assert current(Settings(home=home)) == HEAD
    for row in before:
        (shown,) = said(capsys, "show", str(row["id"]), "-o", "json")["items"]
        del row["swept"]  # it compares the jobs shown together
        assert {name: shown[name] for name in row} == row
        assert run(["show", str(row["id"])]) == 0
        assert run(["explain", str(row["id"])]) == 0


def test_its_configs_and_fits_are_read(world: World) -> None:
    rows = {row.id: row for row in results.jobs(world.engine)}
    for job_id, config in configs(world.engine, [*rows]).items():
        assert config == JobConfig.model_validate_json(world.job(job_id).config), "a field more has its default"
        assert config.config_id == rows[job_id].config_id
    assert {one.fit.law for one in store.newest(world.engine, sweep="finished")} == {"ln", "lc", "tn"}
    assert all(world.job(job_id).lr is None for job_id in (*ENDED, STOPPED)), "auto was asked for"
    assert {row.lr for row in results.measured(world.engine, ["finished"])} == {rows[job_id].lr for job_id in ENDED}


def test_what_was_stopped_goes_on_bit_for_bit_and_the_others_are_trained(world: World) -> None:
    engine = world.engine
    drawn_before = curve(world, STOPPED)
    queue.resume(engine, [PAUSED])
    queue.retry(engine, [CANCELLED])
    (never_stopped,) = world.enqueue(configs(engine, [STOPPED])[STOPPED], name="again")
    # The version before knew no kernels in C, whose sums differ from torch's in their last bits.
    assert world.work("--until-empty", ORCH_COMPILE="off").wait(200) == 0, world.said()
    assert {row.state for row in results.jobs(engine)} == {"succeeded"}
    assert world.attempts(STOPPED) == [("preempted", 0), ("max_tokens", CAPTURED_AT)]
    resumed, straight = curve(world, STOPPED), curve(world, never_stopped)
    assert [point[0] for point in resumed] == [point[0] for point in straight]
    assert resumed[: len(drawn_before)] == drawn_before
    # The version before stored the fvu of the average as fvu, and nothing in the last four, fvu_averaged first.
    first, later = straight[: len(drawn_before)], straight[len(drawn_before) :]
    pairs = [(point[:-4], (now[0], now[-4], *now[2:-4])) for point, now in zip(drawn_before, first, strict=True)]
    if all(then == now for then, now in pairs):
        assert resumed[len(drawn_before) :] == later
    else:  # this machine's sums differ in their last bits from those of the one that wrote the checkpoint
        for left, right in [*pairs, *zip(resumed[len(drawn_before) :], later, strict=True)]:
            assert [value is None for value in left] == [value is None for value in right]
            numbers = [tuple(value for value in values if value is not None) for values in (left, right)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.02)


def curve(world: World, job_id: int) -> list[tuple[float, ...]]:
    """Return the stored curve, but for what the subject cost, which depends on who shared it."""
    return world.curve(job_id, with_subject=False)
