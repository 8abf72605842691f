"""Run the demo in a folder of its own and take two pictures of it: `orch status --watch` and the page of the report.

`make screenshots` runs this; it needs Chromium and takes about two minutes. The pictures are the program's own output:
the terminal's is what `orch status --watch` wrote to a terminal of 116 columns while the demo trained.
"""

import fcntl
import html
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyte
from PIL import Image

from tests.browser import Browser

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS, LINES = 116, 14
SHARE_DONE = 0.6
"""Of the training, when the terminal's picture is taken: some jobs are over by then, and some are not."""
COLOURS = {
    "default": "#d6d9e0", "black": "#1b1e27", "red": "#ef6b73", "green": "#7fc87f", "brown": "#e0b95f",
    "blue": "#6ea8fe", "magenta": "#c792ea", "cyan": "#5fc9d8", "white": "#d6d9e0", "brightblack": "#6b7182",
}  # fmt: skip
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #1b1e27; }}
header {{ padding: 10px 14px 0; color: #8a90a0; font: 13px "DejaVu Sans Mono", monospace; }}
pre {{ margin: 0; padding: 10px 14px 12px; color: #d6d9e0; font: 14px/1.35 "DejaVu Sans Mono", monospace; }}
</style><header>$ orch status --watch</header><pre>{}</pre>"""


class Terminal:
    """A program in a terminal of its own, and what it shows there."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        """Start the program."""
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=environ | {"TERM": "xterm-256color"},
            cwd=ROOT, close_fds=True,
        )  # fmt: skip
        os.close(follower)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._leader, 65536)
            except OSError:
                return
            with self._lock:
                self._stream.feed(found)

    def picture(self) -> str:
        """Return the screen as HTML, without the empty lines at its end."""
        with self._lock:
            lines = [self._line(number) for number in range(LINES)]
        return "\n".join(lines).rstrip()

    def _line(self, number: int) -> str:
        row = self.screen.buffer[number]
        cells = [row[column] for column in range(COLUMNS)]
        runs = groupby(cells, key=lambda cell: (cell.fg, cell.bold))
        return "".join(_span("".join(cell.data for cell in run), *style) for style, run in runs).rstrip()


def _span(text: str, colour: str, bold: bool) -> str:
    weight = "; font-weight: bold" if bold else ""
    return f'<span style="color: {COLOURS.get(colour, "#" + colour)}{weight}">{html.escape(text)}</span>'


def orch(*arguments: str) -> list[str]:
    """Return a command of orch."""
    return [sys.executable, "-m", "orchestrator", *arguments]


def moments(demo: subprocess.Popen[bytes], environ: dict[str, str]) -> Iterator[float]:
    """Yield the share of the demo's training that is done, until it has ended."""
    while demo.poll() is None:
        asked = subprocess.run(
            orch("status", "quickstart", "-o", "json"), env=environ, cwd=ROOT, capture_output=True, check=False
        )
        jobs = json.loads(asked.stdout)["items"] if asked.returncode == 0 else []
        parts = [1.0 if job["outcome"] else job["tokens_seen"] / job["max_tokens"] for job in jobs]
        yield sum(parts) / max(1, len(parts))
        time.sleep(1)


def keep(picture: Path, name: str) -> None:
    """Put a picture among the images, in few colours: it has few, and a reader's network is spared."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(96).save(IMAGES / name, optimize=True)


def main() -> None:
    """Write docs/images/status.png and docs/images/report.png."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        browser = Browser(folder)
        environ = os.environ | {"ORCH_HOME": str(folder / "home")}
        demo = subprocess.Popen(orch("demo"), env=environ, cwd=ROOT)
        while not (folder / "home" / "orch.db").exists():
            time.sleep(0.5)
        terminal = Terminal(orch("--color", "always", "status", "quickstart", "--watch", "1"), environ)
        if any(done >= SHARE_DONE for done in moments(demo, environ)):
            time.sleep(2)
            page = folder / "status.html"
            page.write_text(PAGE.format(terminal.picture()), encoding="utf-8")
        terminal.process.terminate()
        if demo.wait() != 0:
            sys.exit("the demo failed")
        keep(browser.look(page, width=1010, height=298), "status.png")
        keep(browser.look(folder / "home" / "reports" / "quickstart.html", width=1100, height=1262), "report.png")


if __name__ == "__main__":
    main()
