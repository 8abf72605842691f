"""Headless Chromium for tests of pages: screenshots, PDF, the DOM, and network requests."""

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-extensions",
    "--hide-scrollbars", "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>",
)  # fmt: skip
"""The proxy is a closed port: a request that is made does not leave the machine."""
DARK = "--blink-settings=preferredColorScheme=0"
SECONDS = 120
_NOBODY = "not an origin"


class Browser:
    """One profile of the browser."""

    def __init__(self, folder: Path) -> None:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            pytest.skip("no Chromium here: install chromium to look at the pages")
        self._program, self._folder = found, folder

    def look(self, page: Path, *, height: int = 900, width: int = 1280, dark: bool = False) -> Path:
        """Return a screenshot."""
        out = self._folder / f"{page.stem}-{width}-{'dark' if dark else 'light'}.png"
        self._run(page, f"--window-size={width},{height}", f"--screenshot={out}", *([DARK] if dark else []))
        return out

    def paper(self, page: Path) -> bytes:
        """Return the page as it is printed."""
        out = self._folder / f"{page.stem}.pdf"
        self._run(page, "--no-pdf-header-footer", f"--print-to-pdf={out}")
        return out.read_bytes()

    def dom(self, page: Path, *, width: int = 1280) -> str:
        """Return the page as it stands after its scripts."""
        return self._run(page, f"--window-size={width},900", "--dump-dom")

    def requests(self, page: Path) -> list[str]:
        """Return the addresses that opening a page asks for, the page itself and the browser's own left out."""
        log = self._folder / f"{page.stem}-net.json"
        self._run(page, f"--log-net-log={log}", "--dump-dom")
        events = json.loads(log.read_text(errors="replace"))["events"]
        asked = [event["params"] for event in events if "url" in event.get("params", {})]
        # What the browser asks for of its own accord (updates, the time) has no page behind it.
        of_pages = {one["url"] for one in asked if one.get("initiator", _NOBODY) != _NOBODY}
        return sorted(url for url in of_pages if urlsplit(url).scheme not in ("file", "data"))

    def _run(self, page: Path, *flags: str) -> str:
        profile = self._folder / "profile"
        command = [self._program, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
