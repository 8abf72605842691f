"""A stand-in for the Hugging Face hub, on this machine: repositories of small files, read and committed to."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class HubDouble:
    """What the double holds: files by repository and path."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.url = ""


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """Run a double on a free port until the block ends."""
    hub = HubDouble()

    class Handler(_Handler):
        double = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    double: HubDouble

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] != ["api", "models"]:
            self._resolve(body=True)
            return
        files = self.double.repositories.get("/".join(parts[2:4]))
        if files is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "tree" in parts:
            rows = [{"type": "file", "path": name, "size": len(text), "oid": SHA} for name, text in files.items()]
            self._answer(200, rows)
        else:
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {"id": "/".join(parts[2:4]), "sha": SHA, "siblings": siblings, "private": False})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._parts()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.double.repositories.setdefault(name, {})
            self._answer(200, {"url": f"{self.double.url}/{name}", "name": name, "id": SHA})
        elif "preupload" in parts:
            files = json.loads(content)["files"]
            self._answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "commit" in parts:
            name = "/".join(parts[2:4])
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    text = base64.b64decode(entry["value"]["content"])
                    self.double.repositories[name][entry["value"]["path"]] = text
            url = f"{self.double.url}/{name}/commit/{SHA}"
            self._answer(200, {"commitUrl": url, "commitOid": SHA, "success": True})
        else:
            self._answer(200, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _parts(self) -> list[str]:
        self.double.asked.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _resolve(self, *, body: bool) -> None:
        parts = self._parts()
        files = self.double.repositories.get("/".join(parts[:2]), {})
        text = files.get("/".join(parts[4:]))
        if text is None:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        self._answer(200, text if body else b"", {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, length=len(text))

    def _answer(
        self, code: int, content: Any, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
