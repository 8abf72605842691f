"""Jobs that are hidden, deleted, or given another priority."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.errors import NotFound, StateError
from orchestrator.settings import Settings
from orchestrator.storage import garbage
from orchestrator.sweep import expand
from tests.queue_shorthand import claim, enqueue, events, job, nothing_to_claim, result, sweep


def ended(engine: Engine, n: int = 2) -> list[int]:
    ids = enqueue(engine, n)
    for _ in ids:
        queue.finish(engine, claim(engine).lease, result())
    return ids


def test_hidden_jobs_are_in_no_list_count_or_law_and_come_back(engine: Engine) -> None:
    first, second = ended(engine)
    assert queue.hide_jobs(engine, [first])[0].effect == "hidden"
    assert [row.id for row in results.jobs(engine)] == results.find(engine, ["s"]) == [second]
    assert results.counts(engine)["succeeded"] == 1
    assert [row.job_id for row in results.measured(engine, ["s"])] == [second]
    assert results.find(engine, [str(first)]) == [first]
    assert results.jobs(engine, ids=[first])[0].hidden == "hidden"
    queue.hide_jobs(engine, [second])
    assert results.sweeps(engine) == []
    assert results.hidden_of(engine, ["s"]) == [first, second]
    queue.hide_jobs(engine, [first, second], hidden=False)
    assert [row.id for row in results.jobs(engine)] == [first, second]
    assert events(engine, first)[-2:] == ["hidden", "shown"]


def test_a_hidden_job_that_is_extended_or_retried_is_seen_again(engine: Engine) -> None:
    (one,) = enqueue(engine)
    queue.cancel(engine, [one])
    queue.hide_jobs(engine, [one])
    queue.retry(engine, [one])
    assert [row.state for row in results.jobs(engine)] == ["queued"]


def test_a_deleted_job_takes_no_room_in_its_sweep(engine: Engine) -> None:
    queue.enqueue(engine, sweep(1, run_cap=1))
    queue.delete_jobs(engine, [1])
    assert queue.enqueue(engine, sweep(1, run_cap=1)).added == 1
    assert results.stats(engine).jobs == results.counts(engine)


def test_a_deleted_job_is_gone_for_good_and_its_config_may_come_again(engine: Engine) -> None:
    (first, second) = ended(engine)
    assert queue.delete_jobs(engine, [first])[0].effect == "deleted"
    assert [row.id for row in results.jobs(engine)] == [second]
    for verb in (queue.retry, queue.resume, queue.hide_jobs, queue.cancel):
        with pytest.raises(StateError, match="is deleted"):
            verb(engine, [first])
    with pytest.raises(StateError, match="is deleted"):
        queue.extend(engine, [first], max_tokens=2**40)
    assert queue.enqueue(engine, sweep(2)).job_ids == (3, None), "a number is never given twice"
    assert job(engine, first).reason == "deleted by hand"


def test_what_runs_is_neither_hidden_nor_deleted(engine: Engine) -> None:
    (one,) = enqueue(engine)
    with pytest.raises(StateError, match="it is queued"):
        queue.hide_jobs(engine, [one])
    claim(engine)
    with pytest.raises(StateError, match="is running: cancel it first"):
        queue.delete_jobs(engine, [one])
    with pytest.raises(NotFound):
        queue.delete_jobs(engine, [9])


def test_a_deleted_job_that_waited_is_not_claimed(engine: Engine) -> None:
    queue.delete_jobs(engine, enqueue(engine))
    assert nothing_to_claim(engine)


def test_files_stay_until_gc(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from orchestrator.database.schema import open_database

    settings = sqlite_settings
    monkeypatch.setenv("ORCH_HOME", str(settings.home))
    engine = open_database(settings)
    (one, other) = ended(engine)
    final = [settings.artifacts_folder / str(number) / "1" / "final" for number in (one, other)]
    for folder in final:
        folder.mkdir(parents=True)
        (folder / "sae.safetensors").write_bytes(b"0" * 1000)
    assert run(["delete", str(one)]) == 2, "it asks, and nobody is there to answer"
    assert "Delete 1 job (1 succeeded): 1 trained SAE" in capsys.readouterr().err
    assert run(["delete", str(one), "--yes"]) == 0
    assert final[0].exists()
    gone = garbage.remove(engine, garbage.find(engine, settings, older_than=1e9))
    assert [(item.kind, item.path) for item in gone] == [("deleted", settings.artifacts_folder / str(one))]
    assert [folder.exists() for folder in final] == [False, True]
    engine.dispose()


def test_another_priority_changes_who_is_next(engine: Engine) -> None:
    first, second = enqueue(engine, 2)
    assert queue.reprioritise(engine, [second], priority=5)[0].effect == "has priority 5"
    assert claim(engine).lease.job_id == second
    queue.delete_jobs(engine, [first])
    with pytest.raises(StateError, match="is deleted"):
        queue.reprioritise(engine, [first], priority=1)


def test_a_sweep_file_names_a_priority(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "urgent.yaml"
    file.write_text("priority: 7\nsae.n_latents: 64\n")
    enqueue(engine, 1)
    (urgent,) = queue.enqueue(engine, expand(file)).job_ids
    assert claim(engine).lease.job_id == urgent
    assert job(engine, urgent or 0).priority == 7
    assert queue.enqueue(engine, expand(file), allow_duplicate=True, priority=1).job_ids == (3,)
    assert job(engine, 3).priority == 1
