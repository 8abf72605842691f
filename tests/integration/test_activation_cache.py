"""A sweep that is trained twice captures once, through real workers; and the cache changes no curve."""

from pathlib import Path

import pytest

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.storage import activation_caches, cache_rows
from tests.small_world import World, make_subject, small_config, small_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def cached(config: JobConfig, **sae: int) -> JobConfig:
    values = config.model_dump()
    return parse(values | {"data": values["data"] | {"activations": "cache"}, "sae": values["sae"] | sae})


def shards(world: World) -> dict[str, int]:
    """Return when each shard was written."""
    found = activation_caches.folder(world.settings.home).glob("*/*.bin")
    return {path.name: path.stat().st_mtime_ns for path in found}


def train(world: World, *configs: JobConfig, name: str) -> list[list[tuple[float, ...]]]:
    jobs = world.enqueue(*configs, name=name)
    assert world.work("--until-empty").wait(180) == 0, world.said()
    assert [world.job(job).state for job in jobs] == ["succeeded"] * len(jobs), world.said()
    return [world.curve(job, with_subject=False) for job in jobs]


def test_a_sweep_trained_twice_captures_once(tmp_path: Path) -> None:
    config = small_config(make_subject(tmp_path / "subject"), max_tokens=32_768)
    with small_world(tmp_path / "live") as world:
        (live,) = train(world, config, name="live")
        assert not shards(world)
    with small_world(tmp_path / "cached") as world:
        first = train(world, cached(config), cached(config, k=2), name="first")
        assert first[0] == live
        written = shards(world)
        assert written
        (row,) = cache_rows.list_rows(world.engine)
        kept = activation_caches.list_caches(activation_caches.folder(world.settings.home))[0]
        assert (row.key, row.shards, row.complete, row.uri) == (kept.key, len(written), True, str(kept.path))
        assert train(world, cached(config), cached(config, k=2), name="second") == first
        assert shards(world) == written
        (again,) = cache_rows.list_rows(world.engine)
        assert again.last_used_at > row.last_used_at
        assert not activation_caches.in_use(kept.path)
