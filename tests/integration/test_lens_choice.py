"""A lens is named when a sweep is enqueued, and stored as its content: by `orch lens import`, the CLI and Python."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import orch
import worker.saes.__main__
from orchestrator import lenses, queue, results
from orchestrator.cli import main
from orchestrator.config.lens.facts import LENSES
from orchestrator.errors import NotFound
from tests.lens_shorthand import queue_lens, train_lens
from tests.small_world import WIDTH, World, make_subject, small_world
from tests.unit.worker.subject.tiny_models import save_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("models") / "a-subject")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with small_world(tmp_path / "home") as world:
        for name, value in world.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield world


def published(folder: Path, **changes: Any) -> Path:
    """Write a lens as the tuned-lens library does, of a model of two blocks."""
    folder.mkdir()
    about = {"base_model_name_or_path": "a-subject", "d_model": WIDTH, "num_hidden_layers": 2, "bias": True}
    (folder / "config.json").write_text(json.dumps(about | changes))
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": 0.1 * torch.randn(WIDTH, WIDTH, generator=draw) for i in range(2)}
    torch.save(tensors | {f"{i}.bias": torch.randn(WIDTH, generator=draw) for i in range(2)}, folder / "params.pt")
    return folder


class Said(NamedTuple):
    exit_code: int
    output: str


Run = Callable[..., Said]


def said_by(command: Callable[[list[str]], int], capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Said:
        capfd.readouterr()
        code = command([*arguments])
        out, err = capfd.readouterr()
        return Said(code, out + err)

    return run


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return said_by(main.run, capfd)


@pytest.fixture
def work(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run what `orch lens import` runs in a process of its own, but here: a process takes seconds to load torch."""
    return said_by(worker.saes.__main__.main, capfd)


def sweep(subject: Path, lens: str | int, **place: Any) -> str:
    text = {"data.source": str(subject / "text.txt"), "data.context_length": 32}
    keys = {"subject.model": str(subject), "sae.lens": lens} | text | place
    return json.dumps({"version": 1, "name": "lensed", "overrides": keys})


def test_a_lens_is_imported_named_and_stored_by_its_content(
    world: World, run: Run, subject: Path, tmp_path: Path
) -> None:
    folder = published(tmp_path / "my-lens")
    said = run("lens", "import", str(folder), "--subject", str(subject))
    assert said.exit_code == 0, said.output
    (entry,) = lenses.entries(world.engine)
    assert entry.sha256 is not None
    assert (world.settings.artifacts_folder / LENSES / entry.sha256 / "lens.json").is_file()
    assert (entry.name, entry.model, entry.n_layers) == ("my-lens", str(subject), 2)
    assert entry.conditions is not None
    assert entry.conditions[0] > 1 == entry.conditions[1]
    assert f"content id {entry.sha256}" in said.output
    assert run("lens", "import", str(folder), "--subject", str(subject)).exit_code == 4, "the name is taken"

    for number, name in enumerate(("my-lens", entry.sha256[:10], entry.sha256)):
        (tmp_path / "lensed.json").write_text(sweep(subject, name))
        preview = run("enqueue", str(tmp_path / "lensed.json"), "--dry-run")
        assert ("would add 1" if not number else "already there 1") in preview.output, preview.output
        assert run("enqueue", str(tmp_path / "lensed.json")).exit_code == 0
    with orch.open(home=world.settings.home) as study:
        assert study.enqueue(sweep(subject, "my-lens") + "\n") == [1], "however it is named it is one job"
    (job,) = results.jobs(world.engine)
    assert results.config(world.engine, job.id)["sae"]["lens"] == entry.sha256
    shown = run("show", str(job.id)).output
    assert f"{entry.sha256[:12]}: fvu is in its space" in shown


def test_a_file_in_the_place_of_the_folder_of_a_lens_is_told_as_one(run: Run, subject: Path, tmp_path: Path) -> None:
    """It was said that there is no such folder."""
    folder = published(tmp_path / "mine")
    for given, said in (
        (folder / "params.pt", f"Error: {folder / 'params.pt'} is a file, not a folder\n"),
        (tmp_path / "gone", f"Error: there is no folder {tmp_path / 'gone'}\n"),
    ):
        told = run("lens", "import", str(given), "--subject", str(subject))
        assert told.exit_code == 3
        assert said in told.output
        assert "Give the folder that holds config.json and params.pt." in told.output
    (folder / "params.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    told = run("lens", "import", str(folder), "--subject", str(subject))
    assert told.exit_code == 2
    assert "params.pt is plain text, not tensors" in told.output


def test_what_cannot_be_named_is_said_and_nothing_is_queued(
    world: World, run: Run, work: Run, subject: Path, tmp_path: Path
) -> None:
    assert work("import-lens", str(published(tmp_path / "mine")), "--subject", str(subject)).exit_code == 0
    other = save_model("gpt2", tmp_path / "other")
    (other / "text.txt").write_text("the quick brown fox")
    for file, said, code in (
        (sweep(subject, "mien"), "there is no lens 'mien'; did you mean mine?", 3),
        (sweep(other, "mine"), f"sae.lens: the lens mine is of subject.model = {subject}", 2),
        (sweep(subject, "mine", **{"subject.site": "mlp_post"}), "sae.lens maps the output of a block", 2),
    ):
        (tmp_path / "lensed.json").write_text(file)
        for command in (("enqueue",), ("enqueue", "--dry-run"), ("config", "validate")):
            refused = run(*command, str(tmp_path / "lensed.json"))
            assert refused.exit_code == code, refused.output
            assert said in refused.output
    assert results.jobs(world.engine) == []


def test_a_lens_whose_job_has_none_is_refused_with_what_to_do(
    world: World, run: Run, subject: Path, tmp_path: Path
) -> None:
    def said() -> str:
        (tmp_path / "lensed.json").write_text(sweep(subject, 1))
        refused = run("enqueue", str(tmp_path / "lensed.json"))
        assert refused.exit_code == 2, refused.output
        return refused.output

    engine = world.engine
    assert queue_lens(engine, name="mine") == 1, "its number, as YAML reads it, names it too"
    told = said()
    assert "the lens mine is not there yet: job 1, which trains it, is queued" in told
    assert "orch wait 1, then" in told
    queue.cancel(engine, [1])
    told = said()
    assert "is not there: job 1, which was to train it, is cancelled" in told
    assert "orch retry 1, then" in told
    queue.retry(engine, [1])
    train_lens(engine, outcome="diverged", uri=None, sha256=None, conditions=None)
    told = said()
    assert "is not there: job 1, which was to train it, has diverged" in told
    assert "a lower --lr, then" in told
    assert "wait" not in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model_name_or_path": "another"}, "the lens is of another, and the subject is"),
        ({"num_hidden_layers": 3}, "for 3 blocks of width 32, and"),
        ({"base_model_revision": "step2"}, "the lens is of revision step2 of its model"),
    ],
)
def test_files_of_another_model_are_refused(
    world: World, work: Run, subject: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = published(tmp_path / "mine", **changes)
    refused = work("import-lens", str(folder), "--subject", str(subject))
    assert refused.exit_code == 2
    assert said in refused.output
    assert lenses.entries(world.engine) == []
    assert not (world.settings.artifacts_folder / LENSES).exists()


def test_a_folder_that_is_not_there(world: World, run: Run, subject: Path) -> None:
    refused = run("lens", "import", "nowhere", "--subject", str(subject))
    assert refused.exit_code == 3
    assert "there is no folder nowhere" in refused.output


def test_without_a_database_there_is_no_lens(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "new"))
    (tmp_path / "lensed.json").write_text(sweep(subject, "mine"))
    refused = run("enqueue", str(tmp_path / "lensed.json"), "--dry-run")
    assert refused.exit_code == NotFound.exit_code
    assert "there is no lens 'mine'" in refused.output
