"""Whoever only looks changes nothing, however it ends; a person's Ctrl-C is heard twice."""

import os
import subprocess
import sys

import psutil
import pytest
from sqlalchemy import select

from orchestrator.database.models import Event, Job
from tests.small_world import ROOT, World, small_config


@pytest.mark.parametrize("arguments", [("wait", "1"), ("status", "--watch", "0.5")], ids=["wait", "watch"])
def test_f35_kill_9_of_who_waits_changes_nothing(world: World, arguments: tuple[str, ...]) -> None:
    world.enqueue(small_config(world.settings.home))
    columns = [column for table in (Job, Event) for column in table.__table__.columns]
    everything = select(*columns).join(Event, Event.job_id == Job.id)
    before = world.rows(everything)
    assert before
    command = [sys.executable, "-m", "orchestrator", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **world.environ}, stdout=subprocess.PIPE) as looker:
        if arguments[0] == "status":
            assert looker.stdout
            assert b"queued" in looker.stdout.readline()
        else:
            world.wait(lambda: any("orch.db" in file.path for file in psutil.Process(looker.pid).open_files()), 60)
        looker.kill()
    assert world.rows(everything) == before
