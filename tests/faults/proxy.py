"""A small TCP proxy before a server: it can cut what is open, refuse what is new, and delay every answer."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """A port of its own on the loopback; all that comes goes on to another port, while it is open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.answers_after = 0.0
        """Seconds that every answer is held back."""
        self.is_stalled = False
        """Whether all that comes is taken, connections too, and nothing goes on: as of a container that is paused."""
        self.refused = 0
        self._links: list[socket.socket] = []
        self._door: socket.socket | None = None
        self.port = 0
        self.mend()

    def before(self, url: str) -> str:
        """Return the URL of the server, with our port for its own."""
        assert f":{self._target}" in url
        return url.replace(f":{self._target}", f":{self.port}")

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        door, self._door = self._door, None
        if door:
            with suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            door.close()
        while self._links:
            _reset(self._links.pop())

    def mend(self) -> None:
        """Let through what comes."""
        self._door = door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", self.port))
        self.port = door.getsockname()[1]
        door.listen(64)
        threading.Thread(target=self._accept, args=(door,), daemon=True).start()

    def _accept(self, door: socket.socket) -> None:
        while self._door is door:
            try:
                near, _ = door.accept()
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                continue
            far.settimeout(None)
            self._links += [near, far]
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                if answers and self.answers_after:
                    time.sleep(self.answers_after)
                while self.is_stalled:
                    time.sleep(0.05)
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(link: socket.socket) -> None:
    with suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()


@contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """Yield a proxy before the server of a URL, which names a port."""
    made = Proxy(int(url.rpartition(":")[2].partition("/")[0]))
    try:
        yield made
    finally:
        made.cut()
