"""The entry point: names, help, errors and exit codes."""

import importlib
import sys

import click
import pytest

from orchestrator import errors
from orchestrator.cli import main as entry
from orchestrator.cli.main import ALIASES, SECTIONS, cli, run

COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Make `orch ui` raise what is put into this list."""
    raised: list[BaseException] = []

    @click.command()
    def ui() -> None:
        raise raised[0]

    services = importlib.import_module("orchestrator.cli.commands.services")
    monkeypatch.setattr(services, "ui", ui)
    return raised


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_page_says_what_the_commands_say(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    first = (command.help or "").strip().partition("\n")[0]
    assert first.startswith(COMMANDS[name][1].rstrip(".")), first


def test_no_command_is_missing() -> None:
    wanted = "init enqueue status show explain logs wait cancel pause resume retry worker demo ui db doctor config"
    assert set(wanted.split()) <= set(COMMANDS)
    assert set(ALIASES) == {"ls", "ps"}


def test_every_option_has_help() -> None:
    def walk(command: click.Command) -> None:
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{command.name} {param.name}"
        for inner in command.commands.values() if isinstance(command, click.Group) else ():
            walk(inner)

    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command
        assert run([name, "--help"]) == 0
        walk(command)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["stauts"], 2, "'status'?"),
        (["status", "--stat"], 2, "--state"),
        (["status", "-s", "runing"], 2, "Did you mean 'running'"),
        (["status", "-o", "xml"], 2, "'xml' is not one of"),
        (["status", "-w", "-o", "csv"], 2, "-o json"),
        (["status", "-w", "--columns", "id,fvu"], 2, "--watch has columns of its own"),
        (["status", "-w", "-o", "json", "--columns", "id,fvu"], 2, "--watch has columns of its own"),
        (["show", "8", "--config", "-o", "csv"], 2, "--config prints JSON"),
        (["show", "zero"], 2, "'zero' is no job. A job is a number"),
        (["logs", "0"], 2, "'0' is no job"),
        (["explain", "9" * 20], 2, "is no job"),
        (["show", "9" * 5000], 2, "is no job"),
        (["wait", "1", "--timeout", "soon"], 2, "10m"),
        (["enqueue", "nowhere.yaml"], 2, "nowhere.yaml"),
    ],
)
def test_usage(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.OrchError)]
)
def test_our_errors_are_a_message_a_hint_and_their_exit_code(
    error: type[errors.OrchError], failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(error("it broke", hint="mend it"))
    assert run(["ui"]) == error.exit_code
    assert capsys.readouterr().err == "Error: it broke\nmend it\n"


def test_debug_shows_the_traceback_wherever_it_stands(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(errors.NotFound("nothing there"))
    for arguments in (["--debug", "ui"], ["ui", "--debug"]):
        assert run(arguments) == 3
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("ORCH_DEBUG", "1")
    assert run(["ui"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_no_traceback_either(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(ValueError("four"))
    assert run(["ui"]) == 1
    said = capsys.readouterr().err
    assert "ValueError: four" in said
    assert "--debug" in said
    assert "Traceback" not in said


def test_a_full_disk_is_named(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(OSError(28, "No space left on device", "/data/x"))
    assert run(["ui"]) == 1
    assert capsys.readouterr().err == "Error: /data/x: No space left on device\n"


def test_interrupted(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert run(["ui"]) == 130


def test_no_is_no_error(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(click.Abort())
    assert run(["ui"]) == 1
    assert "Nothing was changed" in capsys.readouterr().err


def test_colours_only_when_wanted(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--color", "always", "config", "show"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    assert run(["config", "show", "--color", "always"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    assert run(["config", "show"]) == 0
    assert "\x1b[" not in capsys.readouterr().out


def test_main_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["orch", "--version"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 0


def test_a_variable_that_sets_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ORCH_LEASE_SECOND", "ORCH_QWERTY", "ORCH_TEST_ME", "ORCH_DEBUG", "ORCH_HEARTBEAT_SECONDS"):
        monkeypatch.setenv(name, "1")
    assert run(["config", "path"]) == 0
    said = capsys.readouterr().err
    assert "ORCH_LEASE_SECOND sets nothing; did you mean ORCH_LEASE_SECONDS?" in said
    assert "ORCH_QWERTY sets nothing\n" in said
    assert said.count("sets nothing") == 2
