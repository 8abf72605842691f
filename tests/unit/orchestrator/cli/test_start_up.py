"""Starting up: `orch` costs what it needs, and nothing else is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROBE = """
import sys
from orchestrator.cli.main import run
code = run(sys.argv[1:])
print("MODULES", *sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""
HEAVY = {"torch", "transformers", "mlflow", "celery", "datasets", "pandas", "matplotlib", "scipy"}
NOT_FOR_HELP = HEAVY | {"sqlalchemy", "alembic", "pydantic", "rich", "numpy", "yaml"}


def _modules(folder: Path, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ,
        check=True,
    )
    return set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["--version"], ["enqueue", "--help"], ["demo", "-h"], ["db", "-h"], ["db", "backup", "-h"],
        ["worker", "-h"], ["worker", "drain", "-h"], ["queue", "stats", "-h"], ["top", "-h"], ["metrics", "-h"],
        ["fit", "-h"], ["plot", "-h"], ["report", "-h"], ["forecast", "-h"], ["plan", "-h"],
    ],
)  # fmt: skip
def test_help_loads_nothing_but_click(tmp_path: Path, arguments: list[str]) -> None:
    loaded = _modules(tmp_path, *arguments)
    assert "click" in loaded
    assert not NOT_FOR_HELP & loaded


def test_status_loads_no_trainer(tmp_path: Path) -> None:
    _modules(tmp_path, "db", "upgrade")
    for arguments in (
        ["status"],
        ["status", "--sort=-n"],
        ["worker", "list"],
        ["queue", "stats"],
        ["metrics"],
        ["top"],
    ):
        loaded = _modules(tmp_path, *arguments)
        assert "sqlalchemy" in loaded
        assert not (HEAVY | {"alembic", "numpy", "pydantic"}) & loaded, arguments


def test_status_loads_what_it_shows_and_no_verb_of_the_queue(tmp_path: Path) -> None:
    """Each is loaded for nothing at every look: the verbs took 40 ms of half a second."""
    _modules(tmp_path, "db", "upgrade")
    loaded = _modules(tmp_path, "status")
    for package, needed in {
        "queue": {"eligibility", "fencing", "types", "workers"},
        "results": {"auto_values", "choice", "eta", "job_rows", "job_values", "rows", "text_passes", "varied_keys",
                    "worker_rows", "queue_stats"},
        "config": {"flat_keys", "sizes"},
    }.items():  # fmt: skip
        names = {name.split(".")[2] for name in loaded if name.startswith(f"orchestrator.{package}.")}
        assert names <= needed, package


def test_enqueue_loads_no_trainer(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("overrides: {sae.k: 8}\n")
    assert not HEAVY & _modules(tmp_path, "enqueue", "s.yaml")


def test_the_end_of_a_command_looks_for_no_garbage() -> None:
    """Of all modules it took a sixth of `orch status`."""
    probe = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
    probe += "from orchestrator.cli.main import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
