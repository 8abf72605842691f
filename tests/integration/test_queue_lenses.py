"""Lens jobs in the queue: asked for, claimed, trained, ended, deleted; on both databases."""

import os
import time
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from orchestrator import lenses, queue, results
from orchestrator.config.lens.facts import LENSES
from orchestrator.config.lens.training import LensConfig
from orchestrator.database.engine import reading, transaction
from orchestrator.database.models import ConvergenceRow, Job, LensPointRow, LensRow, WorkerRow
from orchestrator.errors import ConfigError, NotFound, StateError
from orchestrator.lenses import NewLens
from orchestrator.queue import LeaseLost
from orchestrator.settings import Settings
from orchestrator.storage import garbage
from orchestrator.storage.activation_caches import PARTIAL
from orchestrator.storage.garbage import TEMPORARY_SECONDS
from tests.lens_shorthand import (
    FACTS,
    SHA256,
    begin_lens,
    lens_config,
    lens_point,
    lens_result,
    queue_lens,
    take_lens,
    train_lens,
)
from tests.queue_shorthand import WORKER, claim, enqueue, events, fail, job, lose, nothing_to_claim, ref, state
from tests.worker_shorthand import report


def added(engine: Engine, name: str = "published", sha256: str = SHA256) -> int:
    new = NewLens(
        name=name, source="/a/folder", sha256=sha256, uri=f"/away/lenses/{sha256}", model="org/model", revision=None,
        fingerprint="f" * 64, dtype="float32", n_layers=3, d_model=16, conditions=[2.0, 1.5, 1.0],
    )  # fmt: skip
    return lenses.add(engine, new)


def test_a_lens_is_claimed_with_its_config_and_shares_its_process_with_nobody(engine: Engine) -> None:
    enqueue(engine)
    first, other = queue_lens(engine), queue_lens(engine, heldout_tokens=512)
    trained = claim(engine)
    assert trained.kind == "train"
    taken = take_lens(engine)
    assert (taken.lease.job_id, taken.sweep, taken.stream_key) == (first, "lenses", None)
    assert isinstance(taken.config, LensConfig)
    assert taken.config == lens_config()
    assert taken.config.config_id == job(engine, first).config_id
    alone = queue.claim_companion(engine, WORKER, leader=taken, token=uuid.uuid4().hex, lease_seconds=60.0)
    assert alone is None
    assert take_lens(engine).lease.job_id == other
    row = job(engine, first)
    assert (row.k, row.max_tokens, row.lr, row.stream_key) == (0, 20_000_000, 1e-3, None)


def test_what_is_there_is_not_queued_again_unless_it_is_asked_for(engine: Engine) -> None:
    first = queue_lens(engine)
    assert queue.train_lens(engine, lens_config()) == (first, False)
    assert queue.train_lens(engine, lens_config(), dry_run=True) == (first, False)
    assert queue.train_lens(engine, lens_config(heldout_tokens=512), dry_run=True) == (None, True)
    again = queue_lens(engine, again=True)
    assert (job(engine, again).replica, len(lenses.entries(engine))) == (1, 2)
    queue.cancel(engine, [first, again])
    third = queue_lens(engine)
    assert third not in (first, again)


def test_its_end_is_one_transaction_and_twice_is_once(engine: Engine) -> None:
    job_id = queue_lens(engine, name="mine")
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    points = [lens_point(1024 * 2 ** (i // 4) + i, 1.0 / (i + 1)) for i in range(12)]
    queue.record(engine, lease, points)
    assert lenses.curve(engine, job_id) == points
    for _ in range(2):
        assert queue.finish_lens(engine, lease, lens_result()) == "succeeded"
    found = lenses.named(engine, "mine")
    assert (found.job_id, found.attempt, found.state, found.outcome) == (job_id, 1, "succeeded", "converged")
    assert (found.sha256, found.n_layers, found.d_model, found.fingerprint) == (SHA256, 3, 16, "f" * 64)
    assert (found.kl, found.kls, found.logit_lens_kls) == (points[-1].kl, points[-1].kls, FACTS["logit_lens_kls"])
    assert (found.measured_on, found.measured_tokens, found.conditions) == ("a text", 4096, [5.0, 2.0, 1.0])
    assert [event for event in events(engine, job_id) if event == "succeeded"] == ["succeeded"]
    assert len(results.convergence(engine, job_id)) == 4
    (row,) = results.jobs(engine, kind="lens")
    assert (row.state, row.tokens_seen) == ("succeeded", points[-1].tokens_seen)
    for selector in (str(job_id), SHA256, SHA256[:8]):
        assert lenses.named(engine, selector) == found
    with pytest.raises(NotFound, match="no lens 'mime'; did you mean mine"):
        lenses.named(engine, "mime")


def test_a_beginning_of_several_content_ids_names_none_of_them(engine: Engine) -> None:
    one, other = ("abcdef12" + digit * 56 for digit in "34")
    added(engine, "first", one)
    added(engine, "second", other)
    added(engine, "again", one)
    with pytest.raises(NotFound, match="begins the content id of several lenses: first, second, again"):
        lenses.named(engine, "abcdef12")
    assert lenses.named(engine, "abcdef123").name == "first", "two rows of one content are one lens"
    added(engine, "abcdef12", "0" * 64)
    assert lenses.named(engine, "abcdef12").sha256 == "0" * 64, "a name goes before a content id"


def test_one_that_diverged_has_a_result_and_no_lens(engine: Engine) -> None:
    queue_lens(engine)
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    nan = lens_point(1024, float("nan"))
    queue.record(engine, lease, [nan])
    job_id = lease.job_id
    queue.finish_lens(engine, lease, lens_result(outcome="diverged", uri=None, sha256=None, conditions=None))
    (found,) = lenses.of_jobs(engine, [job_id])
    assert (state(engine, job_id), found.outcome, found.sha256, found.kl) == ("succeeded", "diverged", None, None)


def test_who_was_given_up_writes_nothing(engine: Engine) -> None:
    job_id = queue_lens(engine)
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    queue.record(engine, lease, [lens_point(1024)])
    queue.checkpointed(engine, lease, ref(1024))
    queue.record(engine, lease, [lens_point(2048)])
    lose(engine, job_id)
    for write in (
        lambda: queue.record(engine, lease, [lens_point(4096)]),
        lambda: queue.finish_lens(engine, lease, lens_result()),
        lambda: begin_lens(engine, lease),
    ):
        with pytest.raises(LeaseLost):
            write()
    again = take_lens(engine)
    assert again.cursor == 1024
    begin_lens(engine, again.lease, 1024)
    assert [point.tokens_seen for point in lenses.curve(engine, job_id)] == [1024], "what is trained again is measured"
    assert lenses.named(engine, str(job_id)).sha256 is None


def test_retry_cancel_and_pause_are_those_of_every_job(engine: Engine) -> None:
    job_id = queue_lens(engine)
    assert fail(engine, take_lens(engine).lease) == "queued"
    queue.pause(engine, [job_id])
    assert nothing_to_claim(engine)
    queue.resume(engine, [job_id])
    lease = take_lens(engine).lease
    queue.cancel(engine, [job_id])
    assert queue.heartbeat(engine, lease, lease_seconds=60.0) == "cancel"
    assert queue.release(engine, lease, outcome="cancelled") == "cancelled"
    queue.retry(engine, [job_id])
    assert train_lens(engine) == job_id
    with pytest.raises(StateError, match="trains a lens"):
        queue.extend(engine, [job_id], max_tokens=10**9)


def test_counts_tell_kinds_apart(engine: Engine) -> None:
    enqueue(engine, 2)
    queue_lens(engine)
    queue_lens(engine, heldout_tokens=512)
    assert [results.counts(engine, kind=kind)["queued"] for kind in ("train", "evaluate", "lens")] == [2, 0, 2]
    figures = results.stats(engine)
    assert (figures.jobs["queued"], figures.evaluations["queued"], figures.lenses["queued"]) == (2, 0, 2)
    assert {row.name: row.jobs for row in results.sweeps(engine)} == {"s": 2, "lenses": 0}
    assert [row.id for row in results.jobs(engine)] == [1, 2]


def test_the_name_of_one_that_diverged_is_free(engine: Engine) -> None:
    queue_lens(engine, name="mine")
    train_lens(engine, outcome="diverged", uri=None, sha256=None, conditions=None)
    other = queue_lens(engine, name="mine", heldout_tokens=512)
    assert lenses.named(engine, "mine").job_id == other


def test_a_name_is_of_one_lens_and_free_when_its_job_came_to_nothing(engine: Engine) -> None:
    first = queue_lens(engine, name="mine")
    with pytest.raises(StateError, match="a lens named 'mine' already"):
        queue_lens(engine, name="mine", heldout_tokens=512)
    assert [row.id for row in results.jobs(engine, kind="lens")] == [first], "nothing was queued"
    with pytest.raises(StateError):
        added(engine, "mine")
    queue.cancel(engine, [first])
    second = queue_lens(engine, name="mine", heldout_tokens=512)
    assert lenses.named(engine, "mine").job_id == second
    unnamed = queue_lens(engine, max_tokens=10**6)
    queue_lens(engine, name="late", max_tokens=10**6)
    assert lenses.named(engine, "late").job_id == unnamed
    for name in ("17", "", "a b", "a/b", "-x"):
        with pytest.raises(ConfigError, match="cannot be named"):
            queue_lens(engine, name=name, heldout_tokens=1024)


def test_a_worker_of_an_earlier_version_would_take_it_for_a_training(engine: Engine) -> None:
    report(engine, "old")
    for schema in ("0017", None):
        with transaction(engine) as session:
            session.execute(update(WorkerRow).values(schema=schema))
        with pytest.raises(StateError, match="know no tuned lenses: old"):
            queue_lens(engine)
    with transaction(engine) as session:
        session.execute(update(WorkerRow).values(schema="0018"))
    queue_lens(engine)


def test_a_deleted_job_takes_its_lens_along_unless_another_job_needs_it(engine: Engine) -> None:
    (sae,) = enqueue(engine)
    lens = queue_lens(engine)
    held = claim(engine)
    train_lens(engine)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == sae).values(config=f'{{"sae": {{"lens": "{SHA256}"}}}}'))
    with pytest.raises(StateError, match=f"has trained the lens of job {sae}"):
        queue.delete_jobs(engine, [lens])
    number = added(engine, "same")
    with pytest.raises(StateError, match=f"job {sae} trains in the space"):
        lenses.remove(engine, number)
    queue.release(engine, held.lease)
    queue.delete_jobs(engine, [sae])
    queue.delete_jobs(engine, [lens])
    with reading(engine) as session:
        assert session.scalars(select(LensRow.name)).all() == ["same"]
        assert [*session.scalars(select(LensPointRow.job_id)), *session.scalars(select(ConvergenceRow.job_id))] == []
    with pytest.raises(StateError, match="trained by job"):
        lenses.remove(engine, lenses.named(engine, str(queue_and_train(engine))).id)
    lenses.remove(engine, number)


def queue_and_train(engine: Engine) -> int:
    queue_lens(engine)
    return train_lens(engine)


def test_gc_removes_lenses_that_nothing_names(engine: Engine, settings: Settings) -> None:
    folder = settings.artifacts_folder / LENSES
    of_row, of_config, of_none, fresh, cut_off = "a" * 64, "b" * 64, "c" * 64, "d" * 64, f"e{PARTIAL}"
    for name in (of_row, of_config, of_none, fresh, cut_off):
        (folder / name).mkdir(parents=True)
        (folder / name / "lens.safetensors").write_bytes(b"x")
        if name != fresh:
            _age(folder / name, TEMPORARY_SECONDS + 60)
    added(engine, sha256=of_row)
    (sae,) = enqueue(engine)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == sae).values(config=f'{{"sae": {{"lens": "{of_config}"}}}}'))
    found = garbage.find(engine, settings, older_than=0.0)
    assert {(item.kind, item.path.name) for item in found} == {("lens", of_none), ("temporary", cut_off)}
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == sae).values(config=f'{{"sae": {{"lens": "{of_none}"}}}}'))
    assert [item.path.name for item in garbage.remove(engine, found)] == [cut_off], "a job has come to use it since"


def _age(folder: Path, seconds: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)
