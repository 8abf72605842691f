"""The table of SAEs: entered as jobs finish, or later; named by job, number, name or sweep; on both databases."""

import json

import pytest
from sqlalchemy import Engine, delete

from orchestrator import queue, results, saes
from orchestrator.cli.main import run
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from orchestrator.database.engine import transaction
from orchestrator.database.models import SaeRow
from orchestrator.database.schema import migration_config, open_database
from orchestrator.errors import ConfigError, NotFound, StateError
from orchestrator.saes import Measured, NewSae
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, enqueue, point, ref, result

FACTS = {"n_latents": 64, "d_model": 16, "lr": 0.1, "k_aux": 8, "heldout_tokens": 4096, "subject": {"n_layers": 6}}


def finish(engine: Engine, **facts: object) -> int:
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS | facts, 0)
    queue.record(engine, lease, [point(100, 0.25, fvu_raw=0.5, l0=7.5)])
    queue.finish(engine, lease, result(artifact_uri=f"/away/{lease.job_id}/{lease.attempt}/final"))
    return lease.job_id


def imported(**values: object) -> NewSae:
    facts = SaeFacts(
        selection="jumprelu", d_model=16, n_latents=64, normalize="none", subtracts_bias=False, dtype="float32",
        subject="org/model", layers=(3,), site="resid_post", stated_l0=9.0,
    )  # fmt: skip
    new = {
        "name": "scope", "format": "gemma_scope", "source": "org/repo/a", "sha256": "00", "uri": "/away/sae",
        "facts": facts, "measured": None, "state": "unverified", "note": "its subject is not here",
    } | values  # fmt: skip
    return NewSae(**new)  # type: ignore[arg-type]


def test_a_job_that_finishes_is_entered_with_what_it_read_and_came_to(engine: Engine) -> None:
    config = parse({"sae": {"activation": "multi_topk", "k": 4, "expansion": 4, "normalize": "none"}})
    queue.enqueue(engine, Sweep("s", (config,)))
    finish(engine)
    (row,) = saes.entries(engine)
    assert (row.label, row.sweep, row.format, row.state) == ("1", "s", "orch", "verified")
    assert (row.fvu, row.fvu_raw, row.l0, row.measured_tokens) == (0.25, 0.5, 7.5, 4096)
    assert row.facts == SaeFacts(
        selection="topk", d_model=16, n_latents=64, normalize="none", subtracts_bias=True, dtype="float32", k=4,
        subject=config.subject.model, layers=(4,), site="resid_post", context_length=128, prepend_bos=False,
    )  # fmt: skip


def test_jobs_that_finished_before_there_was_a_table_are_entered_when_it_is_read(engine: Engine) -> None:
    enqueue(engine, 3)
    for _ in range(3):
        finish(engine)
    before = saes.entries(engine)
    with transaction(engine) as session:
        session.execute(delete(SaeRow).where(SaeRow.job_id != 2))
    after = saes.entries(engine)
    assert sorted(row.job_id or 0 for row in after) == [1, 2, 3]
    assert {row.job_id: row.facts for row in after} == {row.job_id: row.facts for row in before}
    assert saes.record_missing(engine) == 0


def test_saes_of_jobs_are_in_the_order_of_their_jobs_and_then_those_brought_in(engine: Engine) -> None:
    """They were in the order in which their jobs ended, with those brought in between."""
    enqueue(engine, 3)
    queue.pause(engine, [1])
    finish(engine)
    saes.add(engine, imported())
    finish(engine)
    queue.resume(engine, [1])
    finish(engine)
    assert [row.label for row in saes.entries(engine)] == ["1", "2", "3", "sae:scope"]
    assert [row.label for row in results.find_saes(engine, ["s"])] == ["1", "2", "3"]
    assert [row.label for row in results.find_saes(engine, ["sae:scope", "3", "s"])] == ["sae:scope", "3", "1", "2"]


def test_an_sae_keeps_its_number_when_its_job_is_extended(engine: Engine) -> None:
    config = parse({"training": {"max_tokens": 4096}, "sae": {"n_latents": 64}})
    queue.enqueue(engine, Sweep("s", (config,)))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(4096, 0.5)])
    queue.checkpointed(engine, lease, ref(4096))
    queue.finish(engine, lease, result(outcome="max_tokens", artifact_uri="/away/1/1/final"))
    (first,) = saes.entries(engine)
    queue.extend(engine, [1], max_tokens=8192)
    assert saes.entries(engine) == [first], "until it ends again, what it had come to is what there is"
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 4096)
    queue.record(engine, lease, [point(8192, 0.25)])
    queue.finish(engine, lease, result(outcome="max_tokens", artifact_uri="/away/1/2/final"))
    (second,) = saes.entries(engine)
    assert (second.id, second.fvu, second.uri) == (first.id, 0.25, "/away/1/2/final")


def test_saes_of_hidden_jobs_are_not_listed_and_those_of_deleted_ones_are_gone(engine: Engine) -> None:
    enqueue(engine, 2)
    finish(engine)
    finish(engine)
    queue.hide_jobs(engine, [1])
    assert [row.job_id for row in saes.entries(engine)] == [2]
    assert [row.job_id for row in results.find_saes(engine, ["1"])] == [1]
    queue.delete_jobs(engine, [1])
    with pytest.raises(NotFound, match="job 1 has no SAE"):
        results.find_saes(engine, ["1"])


def test_selectors_mean_jobs_numbers_names_and_sweeps(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    enqueue(engine, 2)
    finish(engine)
    number = saes.add(engine, imported())
    assert [row.label for row in results.find_saes(engine, ["sae:scope", "s", f"sae:{number}", "1"])] == [
        "sae:scope",
        "1",
    ]
    assert [row.label for row in results.find_saes(engine, ["sweep:s"])] == ["1"]
    with pytest.raises(NotFound, match=r"no sae:scop; did you mean sae:scope\?"):
        results.find_saes(engine, ["sae:scop"])
    with pytest.raises(NotFound, match="job 2 has no SAE"):
        results.find_saes(engine, ["2"])
    folder = tmp_path_factory.mktemp("an sae")
    with pytest.raises(NotFound, match="is a file or folder"):
        results.find_saes(engine, [str(folder)])


def test_a_name_is_given_once_and_only_imports_are_removed(engine: Engine) -> None:
    enqueue(engine)
    finish(engine)
    number = saes.add(engine, imported())
    with pytest.raises(StateError, match=f"sae:{number} is named 'scope' already"):
        saes.check_name(engine, "scope")
    with pytest.raises(StateError, match="already"):
        saes.add(engine, imported())
    with pytest.raises(StateError, match="trained by job 1"):
        queue.remove_sae(engine, results.find_saes(engine, ["1"])[0].id)
    queue.remove_sae(engine, number)
    assert [row.label for row in saes.entries(engine)] == ["1"]
    saes.add(engine, imported())


def test_what_was_measured_is_kept_with_what_follows(engine: Engine) -> None:
    number = saes.add(engine, imported())
    measured = Measured(fvu=0.25, fvu_raw=0.5, l0=9.5, tokens=4096, text="python:stdlib")
    saes.set_measured(engine, number, measured, state="verified", note="agrees")
    (row,) = saes.entries(engine)
    assert (row.fvu, row.fvu_raw, row.l0, row.measured_tokens, row.measured_on) == (
        0.25,
        0.5,
        9.5,
        4096,
        "python:stdlib",
    )
    assert (row.state, row.note, row.facts.stated_l0) == ("verified", "agrees", 9.0)


def test_facts_of_unknown_words_are_refused() -> None:
    good = imported().facts.as_json()
    assert SaeFacts.from_json(good | {"of_a_later_version": 1}) == imported().facts
    for changed in ({"selection": "other"}, {"normalize": "other"}):
        with pytest.raises(ConfigError, match="'other' is not known"):
            SaeFacts.from_json(good | changed)


def test_the_command_lists_and_shows_them(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(sqlite_settings.home))
    engine = open_database(sqlite_settings)
    assert run(["sae", "list"]) == 0
    assert "There is no SAE yet" in capsys.readouterr().err
    enqueue(engine)
    finish(engine)
    saes.add(engine, imported())
    assert run(["sae", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["SAE", "FROM", "SUBJECT", "PLACE"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "sae:scope"]
    assert run(["sae", "list", "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["selector"], item["d_model"], item["state"]) for item in items] == [
        ("1", 16, "verified"),
        ("sae:scope", 16, "unverified"),
    ]
    assert run(["sae", "show", "sae:scope"]) == 0
    assert "unverified: its subject is not here" in capsys.readouterr().out
    assert run(["sae", "remove", "-y", "sae:scope"]) == 0
    assert run(["sae", "show", "sae:scope"]) == 3
    assert run(["sae", "remove", "-y", "1"]) == 4
    engine.dispose()


def test_a_database_of_the_version_before_has_the_saes_of_its_jobs(engine: Engine) -> None:
    from alembic import command

    enqueue(engine, 2)
    finish(engine)
    before = saes.entries(engine)
    for verb, revision in ((command.downgrade, "0011"), (command.upgrade, "head")):
        with engine.execution_options(orch_write=True).begin() as connection:
            verb(migration_config(connection), revision)
    after = saes.entries(engine)
    assert [(row.job_id, row.facts, row.fvu) for row in after] == [(row.job_id, row.facts, row.fvu) for row in before]
