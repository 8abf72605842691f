"""An SAE of all layers, through real workers: killed, cached or in company it draws one curve; it tells each layer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from orchestrator import queue, results, saes
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.layers import LayersOptions
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.models import MeasuredFamily, ScoreRow
from orchestrator.errors import ConfigError
from orchestrator.report.collect import collect_contents
from orchestrator.report.page import render
from orchestrator.scaling.plots.all_plots import draw_all
from tests.small_world import WORDS, World, make_subject, small_config, small_world, trainers
from worker.formats import registry
from worker.saes.loading import choose_sae
from worker.tracking.job_record import measures_of, read

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TOKENS = 65_536


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject") / "subject")


def multi(subject: Path, *, layers: Any = "all", **data: str) -> JobConfig:
    values = small_config(subject, max_tokens=TOKENS).model_dump()
    place = {"subject": values["subject"] | {"layer": None, "layers": layers}}
    return parse(values | place | {"data": values["data"] | data})


@pytest.fixture(scope="module")
def together(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world where one trainer trained three SAEs: of all layers, of one, and of that one in a list."""
    configs = multi(subject), small_config(subject, max_tokens=TOKENS), multi(subject, layers=[1])
    with small_world(tmp_path_factory.mktemp("together") / "home") as world:
        trained(world, *configs)
        yield world


@pytest.fixture(scope="module")
def evaluations(together: World) -> list[list[queue.Asked]]:
    """Return the evaluations of the first two by each plan, which one process has made."""
    options = LayersOptions(prompt=" ".join(WORDS[:4]), tokens=20_000, example_latents=4)
    plans = (
        EvaluationPlan(metrics=("reconstruction", "downstream"), at_layers="all"),
        EvaluationPlan(metrics=("reconstruction",)),
        EvaluationPlan(metrics=("layers",), layers=options, at_layers="all"),
    )
    ids = [sae.id for sae in saes.entries(together.engine) if sae.job_id in (1, 2)]
    asked = [queue.evaluate(together.engine, plan, ids) for plan in plans]
    assert together.work("--until-empty").wait(180) == 0, together.said()
    return asked


def curve(world: World, job: int) -> list[tuple[float, ...]]:
    return world.curve(job, with_subject=False)


def trained(world: World, *configs: JobConfig, name: str = "first") -> list[list[tuple[float, ...]]]:
    jobs = world.enqueue(*configs, name=name)
    assert world.work("--until-empty").wait(180) == 0, world.said()
    assert [world.job(job).state for job in jobs] == ["succeeded"] * len(jobs), world.said()
    return [curve(world, job) for job in jobs]


def test_in_company_and_from_a_cache_it_draws_the_same_curve(subject: Path, together: World, tmp_path: Path) -> None:
    assert curve(together, 3) == curve(together, 2), "one layer in a list is that layer"
    assert (together.last_attempt(1).facts or {})["shared_with"] == [2, 3], "all read one stream"
    assert {together.job(job).stream_key for job in (1, 2, 3)} == {small_config(subject).stream_key}
    with small_world(tmp_path / "cached") as world:
        for name in ("alone", "read from disk"):
            assert trained(world, multi(subject, activations="cache"), name=name) == [curve(together, 1)], name


def test_killed_it_resumes_bit_for_bit_and_tells_every_layer(subject: Path, together: World, tmp_path: Path) -> None:
    with small_world(tmp_path / "killed") as world:
        (job,) = world.enqueue(multi(subject))
        worker = world.work("--until-empty")
        world.wait(lambda: world.is_in_training(job, 1))
        trainers(worker)[0].kill()
        assert worker.wait(180) == 0, world.said()
        (crashed, _), (done, resumed_at) = world.attempts(job)
        assert (crashed, done) == ("crashed", "max_tokens")
        assert resumed_at
        assert curve(world, job) == curve(together, 1), "alone and disturbed as in company and undisturbed"
        check_layers(world, job)
        check_sae(world, tmp_path)


def test_stopped_together_they_go_on_together_bit_for_bit(subject: Path, together: World, tmp_path: Path) -> None:
    with small_world(tmp_path / "stopped") as world:
        jobs = world.enqueue(multi(subject), small_config(subject, max_tokens=TOKENS), multi(subject, layers=[1]))
        worker = world.work()
        world.wait(lambda: all(world.is_in_training(job, 1) for job in jobs))
        worker.terminate()
        assert worker.wait(90) == 0, world.said()
        assert world.work("--until-empty").wait(180) == 0, world.said()
        for job in jobs:
            (stopped, _), (done, resumed_at) = world.attempts(job)
            assert (stopped, done) == ("preempted", "max_tokens")
            assert resumed_at
            assert curve(world, job) == curve(together, job)
        assert (world.last_attempt(jobs[0]).facts or {})["shared_with"] == jobs[1:]


def test_it_is_evaluated_at_all_its_layers_and_others_beside_it(
    subject: Path, together: World, evaluations: list[list[queue.Asked]]
) -> None:
    across, alone, _ = evaluations
    assert not [row for row in together.rows(select(MeasuredFamily.error)) if row.error], together.said()
    of_all, of_one = (scores(together, one.job_id) for one in across)
    last = results.curve(together.engine, 1)[-1]
    for one in last.by_layer or ():
        assert of_all["fvu", f"layer={one.layer}"] == pytest.approx(one.fvu, rel=1e-4)
    assert of_all["fvu", ""] == of_all["fvu", "mean over layers"] == pytest.approx(last.fvu, rel=1e-4)
    layer = parse(small_config(subject).model_dump()).subject.layer
    assert of_one["fvu", ""] == of_one["fvu", f"layer={layer}"], "plain is where it was trained"
    assert of_one["fvu", "cv over layers"] > of_all["fvu", "cv over layers"]
    for asked, found in zip(alone, (of_all, of_one), strict=True):
        assert scores(together, asked.job_id)["fvu", ""] == found["fvu", ""]


def test_the_layers_of_its_latents_are_measured_and_drawn_and_of_one_layer_refused(
    subject: Path, together: World, evaluations: list[list[queue.Asked]]
) -> None:
    _, _, (measured, refused) = evaluations
    assert (refused.job_id, refused.is_new) == (None, False)
    assert refused.refused.startswith("layers: it reads layer ")
    found = scores(together, measured.job_id)
    assert 0 < found["var_layer_token", ""] < found["var_layer_latent", ""] < found["var_layer", ""]
    assert found["var_layer_token", "as released"] < found["var_layer_token", ""]
    contents = collect_contents(together.engine, ["first"], laws=[])
    (maps,) = [row.score_details["layer_mean"] for row in contents.rows if row.score_details]
    assert maps["tokens"] > multi(subject).training.heldout_tokens
    page = render(contents, draw_all(contents.rows, []))
    for name in ("layers", "layers-mean", "layers-prompt", "layers-activations"):
        assert f'id="figure-{name}"' in page
    ((uri,),) = together.rows(select(MeasuredFamily.uri).where(MeasuredFamily.job_id == measured.job_id))
    folder = Path(together.settings.artifact(uri))
    assert {"latents.json", "prompt.json", "examples.json"} <= {path.name for path in folder.iterdir()}
    assert sum(map(sum, json.loads((folder / "latents.json").read_text())["counts"])) > 0


def scores(world: World, job_id: int | None) -> dict[tuple[str, str], float]:
    columns = select(ScoreRow.metric, ScoreRow.variant, ScoreRow.value).where(ScoreRow.job_id == job_id)
    return {(row.metric, row.variant): row.value for row in world.rows(columns)}


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
    registry.write(chosen.sae, tmp_path / "mlsae", format="mlsae")
    again, x = registry.read(tmp_path / "mlsae").sae, torch.randn(64, chosen.sae.facts.d_model)
    assert (again.facts.layers, again.facts.subject, again.facts.k) == ((0, 1), entry.facts.subject, entry.facts.k)
    assert bool((chosen.sae.b_enc != 0).any()), "training moves it, and mlsae has no place for it"
    assert torch.allclose(again.encode(x), chosen.sae.encode(x), atol=1e-4)
