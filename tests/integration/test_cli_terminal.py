"""`orch` as a process: in a terminal, in a pipe, interrupted; the demo and the tracking pages for real."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.cli.main import run
from tests import servers

ROOT = Path(__file__).parents[2]
ORCH = (sys.executable, "-m", "orchestrator")
SWEEP = """
version: 1
name: tiny
overrides:
  subject.layer: 3
  data.max_tokens: 40_000
  training.batch_tokens: 1024
  training.shuffle_tokens: 8192
  training.heldout_tokens: 4096
  training.max_tokens: {tokens}
  training.dead_after_tokens: 16384
sweep:
  - grid: {{sae.n_latents: [64, 128]}}
"""


class Terminal:
    """A pseudo-terminal with `orch` in it."""

    def __init__(self, *arguments: str, columns: int = 110, lines: int = 30) -> None:
        own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [*ORCH, *arguments], stdin=other, stdout=other, stderr=other, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self._own, self.text = own, ""

    def until(self, pattern: str, *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text[-3000:]
            assert self._read(), self.text[-3000:]

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def end(self, *, seconds: float = 60) -> int:
        deadline = time.monotonic() + seconds
        while self._read() and time.monotonic() < deadline:
            pass
        return self.process.wait(5)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        os.close(self._own)

    def _read(self) -> bool:
        if select.select([self._own], [], [], 0.2)[0]:
            try:
                piece = os.read(self._own, 65536)
            except OSError:  # the other end is closed
                return False
            self.text += piece.decode()
            return bool(piece)
        return self.process.poll() is None


@contextmanager
def terminal(*arguments: str, columns: int = 110) -> Iterator[Terminal]:
    found = Terminal(*arguments, columns=columns)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny sweep.yaml"
    path.write_text(SWEEP.format(tokens=16384))
    return path


@pytest.mark.parametrize("columns", [60, 110])
def test_f35_watching_in_a_terminal_until_ctrl_c(file: Path, columns: int) -> None:
    assert run(["enqueue", str(file)]) == 0
    with terminal("status", "--watch", "0.5", columns=columns) as screen:
        screen.until("no worker is at work")
        assert "○ 2 queued" in screen.text
        assert run(["pause", "1"]) == 0
        screen.until("1 paused")
        screen.type("\x03")
        assert screen.end() == 130
        assert "Traceback" not in screen.text
        assert "\x1b[?25h" in screen.text.rpartition("\x1b[?25l")[2], "the cursor is there again"


def test_watching_from_a_program(file: Path) -> None:
    assert run(["enqueue", str(file)]) == 0
    command = [*ORCH, "status", "-w", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        assert run(["cancel", "2"]) == 0
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert [line.split()[1:4] for line in lines] == [
        ["job", "1", "queued"],
        ["job", "2", "queued"],
        ["job", "2", "cancelled"],
    ]
    assert (process.returncode, rest, errors.strip()) == (130, "", "")


def test_whoever_has_read_enough_may_go(file: Path) -> None:
    assert run(["enqueue", str(file)]) == 0
    done = subprocess.run(
        f'"{sys.executable}" -m orchestrator config schema --json | head -n 1',
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_asking_in_a_terminal(file: Path) -> None:
    assert run(["enqueue", str(file)]) == 0
    for keys, code, said in (("n\n", 1, "Nothing was changed"), ("\x03", 130, ""), ("y\n", 0, "job 2: cancelled")):
        with terminal("cancel", "tiny") as screen:
            screen.until(r"\[y/N\]: ")
            time.sleep(0.5)  # Python's input() misses a signal that comes between the prompt and the wait for keys
            screen.type(keys)
            assert screen.end() == code
            assert said in screen.text


def test_the_demo_in_a_pipe_then_again(file: Path) -> None:
    command = [*ORCH, "demo", "--sweep", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.count(" succeeded: fvu 0.") == 2
    assert re.search(r"^ +1 +64 +32 +0\.\d{4} +\d+\.\d +\d\.\d{4}", done.stdout, re.M)
    assert "orch ui opens it" in done.stdout
    assert "Not fitted: L(N) needs" in done.stdout
    (page,) = re.findall(r"^report +(/.*\.html) ", done.stdout, re.M)
    assert 'id="job-1"' in Path(page).read_text()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0
    assert "every job has ended already" in again.stderr
    with subprocess.Popen([*ORCH, "worker", "--until-empty"], stderr=subprocess.PIPE, text=True) as worker:
        assert worker.wait(60) == 0
    _pages()


def _pages() -> None:
    port = servers.free_port()
    command = [*ORCH, "ui", "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui:
        assert ui.stdout
        address = ui.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(address) as page:
            assert page.status == 200
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 5
        assert f"port {port} cannot be used" in second.stderr
        ui.send_signal(signal.SIGINT)
        ui.communicate(timeout=30)
    assert ui.returncode == 130
    assert not _processes(str(port))


def test_the_demo_interrupted_in_a_terminal(file: Path) -> None:
    file.write_text(SWEEP.format(tokens=4_000_000))
    with terminal("demo", "--sweep", str(file)) as screen:
        screen.until(r"[▁▂▃▄▅▆▇█]{3}", seconds=200)
        screen.type("\x03")
        assert screen.end(seconds=120) == 130
        assert "write their checkpoints" in screen.text
        assert "To go on: orch demo" in screen.text
    assert not _processes("demo-1")
    assert run(["status", "-s", "queued", "-o", "name"]) == 0
    assert run(["show", "1", "--checkpoints"]) == 0


def test_a_demo_whose_workers_die_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_DEVICE", "cuda:99")
    command = [*ORCH, "demo", "--sweep", str(file), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Error: the workers ended and left 2 jobs undone" in done.stderr
    assert "cuda:99" in done.stderr, "the end of the worker's log"


def _processes(words: str) -> list[str]:
    listed = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in listed if words in line and str(sys.executable) in line]
