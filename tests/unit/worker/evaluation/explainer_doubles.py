"""Explainers that work by rule: an endpoint on this machine, and a program. Both name the tokens that are most active.

What they explain is a list of tokens; what they simulate from it is 10 at those tokens and 0 elsewhere.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMPLETION = "/v1/chat/completions"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what the rule says."""
    if request["task"] == "explain":
        pairs = [pair for one in request["excerpts"] for pair in zip(one["tokens"], one["activations"], strict=True)]
        return {"explanation": json.dumps(sorted({token for token, value in pairs if value == 10}))}
    tokens = json.loads(request["explanation"])
    return {"activations": [[10 if token in tokens else 0 for token in row] for row in request["excerpts"]]}


class EndpointDouble:
    """What the endpoint was sent, and what it does instead of the rule."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.statuses: list[int] = []
        """Given one after the other before any answer."""
        self.location = ""
        self.seconds = 0.0
        self.content: Callable[[dict[str, Any]], str] = lambda request: json.dumps(answer(request))
        self.body: Callable[[str], Any] = lambda content: {"choices": [{"message": {"content": content}}]}


@contextmanager
def endpoint_double() -> Iterator[EndpointDouble]:
    """Run an endpoint on a free port until the block ends."""
    double = EndpointDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            double.requests.append(sent)
            double.authorizations.append(self.headers["Authorization"])
            time.sleep(double.seconds)
            status = double.statuses.pop(0) if double.statuses else 200
            found = {"error": f"status {status} for {self.headers['Authorization']}"}
            if status == 200 and self.path == COMPLETION:
                found = double.body(double.content(json.loads(sent["messages"][1]["content"])))
            content = json.dumps(found).encode()
            self.send_response(status)
            if double.location:
                self.send_header("Location", double.location)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    double.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
