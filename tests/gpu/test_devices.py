"""Workers per GPU, and one job on two of them."""

from pathlib import Path

import pytest
import torch

from tests.integration.test_shared_job import check_alike, work
from tests.small_world import make_subject, small_config, small_world

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


def test_the_trainer_of_the_last_gpu_sees_it_alone(subject: Path, tmp_path: Path) -> None:
    last = torch.cuda.device_count() - 1
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(small_config(subject, max_tokens=4096))
        assert work(world, None, "--devices", str(last), "--until-empty").wait(200) == 0, world.said()
        assert world.job(job).state == "succeeded"
        assert (world.last_attempt(job).facts or {})["device"] == "cuda:0"
        assert f"on cuda:{last}" in world.said()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_gpus_draw_the_curve_of_one(subject: Path, tmp_path: Path) -> None:
    config, curves = small_config(subject, max_tokens=16_384, n_latents=65), []
    for device in ("cuda:0", "cuda:0+cuda:1"):
        with small_world(tmp_path / device) as world:
            (job,) = world.enqueue(config)
            assert work(world, device, "--until-empty").wait(200) == 0, world.said()
            curves.append(world.curve(job))
    check_alike(curves[1], curves[0])
