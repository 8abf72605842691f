"""SAEs in the space of a tuned lens, through real workers: killed, cached or in company, missing, of another model."""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from sqlalchemy import select

from orchestrator import queue, results, saes
from orchestrator.cli.display.sae_table import sae_lines
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.config.lens.facts import LENSES, LensFacts
from orchestrator.config.validation import parse
from orchestrator.database.models import Job, ScoreRow
from orchestrator.errors import ConfigError
from orchestrator.sweep.sweep import Sweep
from tests.small_world import WIDTH, World, make_subject, small_config, small_world, trainers
from worker.formats import registry
from worker.lens.tuned_lens import TunedLens
from worker.saes.exporting import at_layer
from worker.saes.importing import import_sae
from worker.saes.loading import choose_sae
from worker.saes.verifying import verify_sae
from worker.subject.model_files import fingerprint, locate

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject") / "subject")


def a_lens(subject: Path, *, weights_of: str = "") -> TunedLens:
    draw = torch.Generator().manual_seed(5)
    weights, biases = 0.2 * torch.randn(2, WIDTH, WIDTH, generator=draw), torch.randn(2, WIDTH, generator=draw)
    weights[-1], biases[-1] = 0, 0
    found = weights_of or fingerprint(locate(SubjectConfig(model=str(subject))))
    facts = LensFacts(model=str(subject), fingerprint=found, n_layers=2, d_model=WIDTH)
    return TunedLens(weights=weights, biases=biases, facts=facts)


def mapped(subject: Path, lens: str | None, *, data: str = "stream") -> JobConfig:
    values = small_config(subject, max_tokens=65_536).model_dump()
    place = {"subject": values["subject"] | {"layer": None, "layers": "all"}}
    change = {"sae": values["sae"] | {"lens": lens}, "data": values["data"] | {"activations": data}}
    return parse(values | place | change)


@pytest.fixture(scope="module")
def together(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world where one process trained and measured an SAE in the space of a lens, and one of activations."""
    plan = EvaluationPlan.model_validate(
        {"metrics": ["reconstruction", "downstream"], "downstream": {"released_lens": True}}
    )
    with small_world(tmp_path_factory.mktemp("together") / "home") as world:
        sha256 = a_lens(subject).store(world.settings.artifacts_folder).sha256
        configs = (mapped(subject, sha256), mapped(subject, None))
        queue.enqueue(world.engine, Sweep("small", configs, evaluation=plan))
        assert world.work("--until-empty").wait(200) == 0, world.said()
        assert (world.last_attempt(1).facts or {})["shared_with"] == [2], "with a lens and without on one stream"
        yield world


def curve(world: World, job: int) -> list[tuple[float, ...]]:
    return world.curve(job, with_subject=False)


@pytest.fixture(scope="module")
def cached(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world where a job without a lens has written a cache, alone: the lenses beside it are wrong."""
    with small_world(tmp_path_factory.mktemp("cached") / "home") as world:
        gone = a_lens(subject).store(world.settings.artifacts_folder)
        rmtree(gone.uri)
        other = a_lens(subject, weights_of="0" * 64).store(world.settings.artifacts_folder).sha256
        assert (world.settings.artifacts_folder / LENSES / other).is_dir()
        world.enqueue(*(mapped(subject, one, data="cache") for one in (gone.sha256, other, None)))
        assert world.work("--until-empty").wait(180) == 0, world.said()
        yield world


def test_in_company_and_from_a_cache_it_draws_the_curve_it_draws_alone(
    subject: Path, together: World, cached: World
) -> None:
    with_lens, without = (curve(together, job) for job in (1, 2))
    assert with_lens != without
    assert curve(cached, 3) == without
    lens = a_lens(subject).store(cached.settings.artifacts_folder).sha256
    (job,) = cached.enqueue(mapped(subject, lens, data="cache"), name="from disk")
    assert cached.work("--until-empty").wait(180) == 0, cached.said()
    assert curve(cached, job) == with_lens, "of activations that a job without a lens has written"


def test_in_company_they_write_a_cache(subject: Path, together: World, tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        lens = a_lens(subject).store(world.settings.artifacts_folder).sha256
        jobs = world.enqueue(*(mapped(subject, one, data="cache") for one in (lens, None)))
        assert world.work("--until-empty").wait(180) == 0, world.said()
        assert [curve(world, job) for job in jobs] == [curve(together, 1), curve(together, 2)]
        assert (world.last_attempt(jobs[0]).facts or {})["shared_with"] == [jobs[1]]


def test_what_is_wrong_with_a_lens_fails_its_job_and_no_other(cached: World) -> None:
    jobs = (1, 2, 3)
    assert [cached.job(job).state for job in jobs] == ["failed", "failed", "succeeded"], cached.said()
    reasons = [str(cached.last_attempt(job).error) for job in jobs[:2]]
    sha256 = results.config(cached.engine, 1)["sae"]["lens"]
    assert f"the lens {sha256[:12]} is gone: there is no folder" in reasons[0]
    assert "with the weights 000000000000, and the model read here" in reasons[1]


def test_killed_it_resumes_bit_for_bit(subject: Path, together: World, tmp_path: Path) -> None:
    with small_world(tmp_path / "killed") as world:
        config = mapped(subject, a_lens(subject).store(world.settings.artifacts_folder).sha256)
        (job,) = world.enqueue(config)
        worker = world.work("--until-empty")
        world.wait(lambda: world.is_in_training(job, 1))
        trainers(worker)[0].kill()
        assert worker.wait(180) == 0, world.said()
        (crashed, _), (done, resumed_at) = world.attempts(job)
        assert (crashed, done) == ("crashed", "max_tokens")
        assert resumed_at
        assert curve(world, job) == curve(together, 1), "alone and disturbed as in company and undisturbed"
        check_sae(world, config.sae.lens or "", tmp_path)


def check_sae(world: World, lens: str, tmp_path: Path) -> None:
    """What is said of the SAE, that it is measured in the lens's space, and where it cannot go."""
    (entry,) = saes.entries(world.engine)
    assert entry.facts.lens == lens
    assert any(lens in line for line in sae_lines(entry))
    assert entry.flat()["lens"] == lens
    chosen = choose_sae(world.engine, world.settings, str(entry.id))
    with pytest.raises(ConfigError, match="has no word for the space of a tuned lens"):
        registry.write(at_layer(chosen.sae, 1), tmp_path / "saelens", format="saelens")
    found = verify_sae(world.engine, world.settings, str(entry.id), {"layer": 0})
    by_layer = results.curve(world.engine, 1)[-1].by_layer
    assert by_layer is not None
    assert found["fvu"] == pytest.approx(by_layer[0].fvu, rel=0.02), "before the inverse, as in training"
    registry.write(chosen.sae, tmp_path / "ours", format="orch")
    assert registry.read(tmp_path / "ours").facts.lens == lens
    with pytest.raises(ConfigError, match="is kept with the job that trained it alone"):
        import_sae(world.engine, world.settings, str(tmp_path / "ours"), {"name": "again"})


def test_it_is_measured_in_the_lens_space_and_put_back_into_the_model(subject: Path, together: World) -> None:
    """Beside an SAE of raw activations at the same places, in one process: each is measured as it reads."""
    jobs = together.rows(select(Job.id).where(Job.kind == "evaluate").order_by(Job.id))
    with_lens, without = ({(row.metric, row.variant): row.value for row in together.rows(
        select(ScoreRow.metric, ScoreRow.variant, ScoreRow.value).where(ScoreRow.job_id == job.id)
    )} for job in jobs)  # fmt: skip
    for trained, found in ((1, with_lens), (2, without)):
        assert found["fvu", ""] == pytest.approx(together.result(trained).fvu, rel=1e-3)
    assert with_lens["ce_clean", ""] == without["ce_clean", ""], "the baseline is the model as it is"
    assert with_lens["lens_condition", "layer=0"] == pytest.approx(a_lens(subject).condition(0), rel=1e-5)
    assert ("kl", "layer=0, released lens") in with_lens
    assert not any("lens" in metric or "lens" in variant for metric, variant in without)
