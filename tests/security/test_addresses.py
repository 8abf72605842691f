"""Servers listen on loopback alone, unless told otherwise."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sqlalchemy import inspect, make_url

from orchestrator.cli.commands import setup
from orchestrator.database.engine import connect
from tests import servers

NewDatabase = Callable[[bool], str]
LOOPBACK = {"127.0.0.1", "::1"}


def _listening(port: int | None) -> set[str]:
    """Return the addresses of this machine that take connections at a port."""
    links = [link.laddr for link in psutil.net_connections("tcp") if link.status == "LISTEN"]
    found = {address.ip for address in links if address and address.port == port}
    assert found, f"nobody listens at {port}"
    return found


def test_the_servers_of_the_tests_are_not_reached_from_outside(postgres_server: str, redis_url: str) -> None:
    for url in map(make_url, (postgres_server, redis_url)):
        if url.host == "127.0.0.1":  # others are given, and are their owner's business
            assert _listening(url.port) <= LOOPBACK


def test_the_pages_of_mlflow_are_not_reached_from_outside(
    new_postgres: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, port = make_url(new_postgres(False)).set(password="hush5f3a"), servers.free_port()
    monkeypatch.setenv("ORCH_TRACKING_URL", store.render_as_string(hide_password=False))
    command = [sys.executable, "-m", "orchestrator", "ui", "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui:
        assert ui.stdout
        assert ui.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        assert _listening(port) <= LOOPBACK
        told = [" ".join(child.cmdline()) for child in psutil.Process(ui.pid).children(recursive=True)]
        assert any("mlflow" in words for words in told)
        ui.send_signal(signal.SIGINT)
        told += ui.communicate(timeout=60)
    told.append((tmp_path / "home" / "logs" / "ui.log").read_text())
    engine = connect(store.render_as_string(hide_password=False))
    assert inspect(engine).has_table("experiments"), "the store that was named is the one that is shown"
    engine.dispose()
    assert "hush5f3a" not in "\n".join(told)


def test_the_settings_that_are_written_name_loopback_and_no_password() -> None:
    hosts = [make_url(line.split('"')[1]) for line in setup._SERVICE.splitlines() if "_url = " in line]
    assert {(url.host, url.password) for url in hosts} == {("127.0.0.1", None)}
    assert len(hosts) == 3
