"""What every tier shares: the marker follows from the folder, and each test has its own data folder."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell that ran this in the background, as `nohup` does
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests start inherit what is ignored

TIERS = ("unit", "integration", "conformance", "chaos", "faults", "security", "compiled", "gpu", "golden", "peers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in TIERS:
            item.add_marker(tier)


def pytest_collection_finish() -> None:
    """Let torch compute on one thread: several files are tested at once, and threads that wait for others spin."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test away from the person's settings and data."""
    for name in [n for n in os.environ if n.startswith(("ORCH_", "MLFLOW_"))]:
        if not name.startswith("ORCH_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch compute on two threads in a test that is about them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _shared_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the small worlds of this process one folder of compiled kernels."""
    os.environ["ORCH_TEST_KERNELS"] = str(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow store with nothing in it: making its 65 tables takes seconds."""
    from orchestrator.settings import Settings
    from worker.tracking.mlflow_client import MlflowClient

    home = tmp_path_factory.mktemp("store")
    MlflowClient(Settings(home=home))
    return home / "mlflow.db"
