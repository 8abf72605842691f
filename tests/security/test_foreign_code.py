"""Nothing that is read is executed: no pickles, no code of a model, no message but JSON."""

import ast
import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from celery import Celery

from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.config.validation import parse
from orchestrator.dispatch import QUEUE_NAME, TASK_NAME, celery_settings, wake
from orchestrator.errors import CheckpointError, OrchError
from orchestrator.settings import Settings
from tests.security.conftest import Bomb
from tests.small_world import World, small_world
from worker.sae.train_state import TrainState
from worker.subject.model import load, width
from worker.subject.tokenizer import load_tokenizer
from worker.trainer import checkpoint

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for wing in ("orch", "orchestrator", "worker", "migrations", "benchmarks", "examples")
    for path in (ROOT / wing).rglob("*.py")
)
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNNERS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.save",
    "torch.hub.load",
}
ALLOWED = {"worker/formats/tensor_file.py": ["calls torch.save"]}
"""Some libraries read .pt files alone: what is exported to them is written so."""
NEVER = 600.0


def _offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if names == ["UnpicklingError", "pickle"]:  # what torch.load raises of a file that is more than weights
                continue
            yield from (f"imports {name}" for name in names if name.partition(".")[0] in PICKLERS)
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in {"np.load", "numpy.load"} and words.get("allow_pickle") != "False":
                yield f"calls {name} for more than arrays"
            if name in RUNNERS or "object_list" in name or name.endswith("gather_object"):
                yield f"calls {name}"
            if name == "torch.load" and words.get("weights_only") != "True":
                yield "calls torch.load for more than weights"
            if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
                yield f"calls {name} with {words}"
            if words.get("trust_remote_code") == "True":
                yield f"{name} trusts code that comes with a model"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_reads_pickles_or_runs_text(path: Path) -> None:
    assert [*_offences(ast.parse(path.read_text()))] == ALLOWED.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "line",
    ["import dill", "from pickle import loads", "eval('1')", "os.system('x')", "torch.load(f)", "yaml.load(f)",
     "run('x', shell=True)", "dist.broadcast_object_list(x)", "load(f, trust_remote_code=True)", "torch.save(x, f)",
     "np.load(f)", "from pickle import UnpicklingError, loads"],
)  # fmt: skip
def test_the_search_finds(line: str) -> None:
    assert len([*_offences(ast.parse(line))]) == 1
    assert [*_offences(ast.parse("torch.load(f, weights_only=True)"))] == []


def _config() -> JobConfig:
    training = {"batch_tokens": 32, "shuffle_tokens": 32, "max_tokens": 320, "first_point_tokens": 64}
    return parse({"sae": {"n_latents": 40, "k": 3}, "training": training})


@pytest.mark.parametrize("name", ["state.safetensors", "trainer.json", "config.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "endless header"])
def test_a_checkpoint_made_of_something_else_is_refused_and_not_run(
    name: str, kind: str, bomb: Bomb, tmp_path: Path
) -> None:
    state = TrainState.fresh(_config(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    folder = Path(checkpoint.save(tmp_path / "job", state, _config(), facts={}).uri)
    checkpoint.load(str(folder), _config())
    _forge(folder / name, kind, bomb)
    if name != "manifest.json":  # whoever can write the file can write its checksum
        sums = json.loads((folder / "manifest.json").read_text())
        sums["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError):
        checkpoint.load(str(folder), _config())
    assert not bomb.has_run


def _forge(path: Path, kind: str, bomb: Bomb) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
        with pytest.raises(FileNotFoundError):
            pickle.loads(pickle.dumps(Bomb(bomb.folder / "deep" / "er")))  # it would run
    elif kind == "torch":
        torch.save({"W_enc": torch.ones(3), "bomb": bomb}, path)
    else:
        path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
@pytest.mark.parametrize("is_trusted", [False, True])
def test_code_that_comes_with_a_model_runs_only_where_the_config_says_so(
    part: str, is_trusted: bool, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = Path(shutil.copytree(subject, tmp_path / f"copy{part}{is_trusted}")), tmp_path / "it ran"
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise OSError('that is all')\n")
    file = folder / ("tokenizer_config.json" if part == "AutoTokenizer" else "config.json")
    own: dict[str, object] = {"auto_map": {part: ["theirs.Own", None] if part == "AutoTokenizer" else "theirs.Own"}}
    own |= {"tokenizer_class": "Own"} if part == "AutoTokenizer" else {"model_type": "theirs"}
    if part == "AutoModelForCausalLM":
        own["model_type"] = "gpt2"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    config = SubjectConfig(model=str(folder), trust_remote_code=is_trusted)
    for read in (load, width, lambda config: load_tokenizer(folder, config)):
        try:
            read(config)
        except OrchError:
            continue
    assert mark.exists() is is_trusted


def test_a_pickled_message_is_refused_and_the_worker_goes_on(
    postgres_settings: Settings, redis_url: str, bomb: Bomb, tmp_path: Path
) -> None:
    """The trainer is a light one: to load torch, and to make a subject before, took most of the time."""
    service = {"database_url": postgres_settings.database_url, "broker_url": redis_url}
    with small_world(tmp_path / "home", **service, poll_seconds=NEVER, reconcile_seconds=NEVER) as world:
        assert celery_settings(world.settings)["accept_content"] == ["json"]
        worker = world.work(module="benchmarks.light_worker")
        world.wait(lambda: "wake-ups come from redis://" in world.said())
        _send_pickle(world.settings, bomb)
        world.wait(lambda: "ContentDisallowed" in world.said() or "Refusing to deserialize" in world.said())
        (job,) = world.enqueue(parse({"training": {"batch_tokens": 64, "max_tokens": 256}, "sae": {"n_latents": 64}}))
        _wake_until_taken(world, job)
        world.wait_state(job, "succeeded")
        worker.terminate()
        assert worker.wait(30) == 0, world.said()
    assert not bomb.has_run


def _send_pickle(settings: Settings, bomb: Bomb) -> None:
    sender = Celery("evil")
    sender.conf.update(celery_settings(settings) | {"accept_content": ["pickle"], "task_serializer": "pickle"})
    sender.send_task(TASK_NAME, args=[bomb], serializer="pickle", queue=QUEUE_NAME)
    sender.close()


def _wake_until_taken(world: World, job: int) -> None:
    def woken() -> bool:
        wake(world.settings, [job])
        time.sleep(0.5)
        return world.job(job).attempt == 1

    world.wait(woken)
