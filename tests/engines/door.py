"""A port whose engine can be changed while clients know nothing of it, and an engine that stays in its loading.

So a real engine is loading for exactly as long as a test needs it: however slow or fast the machine is.
"""

import os
import socket
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.engines.process import HOST, PATIENCE, ServerProcess


def never_loaded(folder: Path) -> tuple[str, str]:
    """Arguments with which llama-server answers that it is loading, and goes on loading: it opens an adapter's file,
    which is a pipe that nobody writes to."""
    pipe = folder / "adapter.gguf"
    os.mkfifo(pipe)
    return "--lora", str(pipe)


class Door(socketserver.ThreadingTCPServer):
    """Passes each new connection on to the engine that it leads to at that moment, byte for byte. A context manager
    that closes it."""

    daemon_threads = True

    def __init__(self, engine: ServerProcess) -> None:
        super().__init__((HOST, 0), _Connection)
        self.engine = engine
        self.base_url = f"http://{HOST}:{self.server_address[1]}"
        self._serving = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._serving.start()

    def lead_to(self, engine: ServerProcess) -> None:
        """From the next connection on."""
        self.engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()
        self._serving.join()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    server: Door
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection((HOST, self.server.engine.port), PATIENCE) as there:
            there.settimeout(None)
            back = threading.Thread(target=_pass, args=(there, self.request), daemon=True)
            back.start()
            _pass(self.request, there)
            back.join()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
