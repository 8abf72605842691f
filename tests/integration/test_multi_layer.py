"""An SAE of all layers, through real workers: killed, cached or in company it draws one curve; it tells each layer."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import results, saes
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from tests.small_world import World, make_subject, small_config, small_world, trainers
from worker.formats import registry
from worker.saes.loading import choose_sae
from worker.tracking.job_record import measures_of, read

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject") / "subject")


def multi(subject: Path, *, layers: Any = "all", max_tokens: int = 16_384, **data: str) -> JobConfig:
    values = small_config(subject, max_tokens=max_tokens).model_dump()
    place = {"subject": values["subject"] | {"layer": None, "layers": layers}}
    return parse(values | place | {"data": values["data"] | data})


def trained(world: World, *configs: JobConfig, name: str = "first") -> list[list[tuple[Any, ...]]]:
    jobs = world.enqueue(*configs, name=name)
    assert world.work("--until-empty").wait(180) == 0, world.said()
    assert [world.job(job).state for job in jobs] == ["succeeded"] * len(jobs), world.said()
    return [list(world.curve(job, with_subject=False)) for job in jobs]


def test_in_company_and_from_a_cache_it_draws_the_same_curve(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "alone") as world:
        (alone,) = trained(world, multi(subject))
    with small_world(tmp_path / "together", jobs_per_trainer=4) as world:
        single = small_config(subject)
        together, one, listed = trained(world, multi(subject), single, multi(subject, layers=[1]))
        assert together == alone
        assert listed == one, "one layer in a list is that layer"
        assert (world.last_attempt(1).facts or {})["shared_with"] == [2, 3], "all read one stream"
        assert {world.job(job).stream_key for job in (1, 2, 3)} == {single.stream_key}
    with small_world(tmp_path / "cached") as world:
        assert trained(world, multi(subject, activations="cache")) == [alone]
        assert trained(world, multi(subject, activations="cache"), name="second") == [alone], "read from disk"


def test_killed_it_resumes_bit_for_bit_and_tells_every_layer(subject: Path, tmp_path: Path) -> None:
    config = multi(subject, max_tokens=65_536)
    with small_world(tmp_path / "undisturbed") as world:
        (undisturbed,) = trained(world, config)
    with small_world(tmp_path / "killed") as world:
        (job,) = world.enqueue(config)
        worker = world.work("--until-empty")
        world.wait(lambda: world.is_in_training(job, 1))
        trainers(worker)[0].kill()
        assert worker.wait(180) == 0, world.said()
        (crashed, _), (done, resumed_at) = world.attempts(job)
        assert (crashed, done) == ("crashed", "max_tokens")
        assert resumed_at
        assert world.curve(job, with_subject=False) == undisturbed
        check_layers(world, job)
        check_sae(world, tmp_path)


def check_layers(world: World, job: int) -> None:
    for point in results.curve(world.engine, job):
        assert point.by_layer is not None
        assert [one.layer for one in point.by_layer] == [0, 1]
        fvus, l0s = ([getattr(one, name) for one in point.by_layer] for name in ("fvu", "l0"))
        assert point.fvu == pytest.approx(sum(fvus) / 2)
        assert point.l0 == pytest.approx(sum(l0s) / 2)
        # What is dead everywhere is dead at each; before the window has passed nothing is measured.
        shares = [one.dead_share for one in point.by_layer if one.dead_share is not None]
        assert not shares or point.dead_share <= min(shares)
    last = read(world.engine, job).points[-1]
    measured = measures_of(last)
    assert {"fvu", "fvu.layer_0", "fvu.layer_1", "l0.layer_1", "dead_share.layer_0"} <= measured.keys()
    assert measured["fvu.layer_1"] == last.by_layer[1][1]  # type: ignore[index]


def check_sae(world: World, tmp_path: Path) -> None:
    (entry,) = saes.entries(world.engine)
    assert (entry.facts.layers, entry.facts.site, entry.facts.hook_point) == ((0, 1), "resid_post", None)
    chosen = choose_sae(world.engine, world.settings, str(entry.id))
    for name in set(registry.WRITTEN) - {"orch", "mlsae"}:
        with pytest.raises(ConfigError, match="of one layer, and this one reads layers 0, 1"):
            registry.write(chosen.sae, tmp_path / name, format=name)
