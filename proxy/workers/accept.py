"""Accepting connections from a socket that several workers share, so that each gets as many as the others.

Left to the kernel, whoever wakes first takes all that is there, and clients keep their connections. So a worker takes
one at a time, and one that has more than another lets that one go first, for a moment. SO_REUSEPORT, a socket for each
worker, spreads by chance and loses what waits for a worker that died; here another takes it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from proxy.workers.table import ABSENT

log = logging.getLogger("illm")

COURTESY: Final = 0.002  # seconds for which a busier worker stands back
EXHAUSTED: Final = 1.0  # seconds until it is tried again when there are no more file descriptors


class Connections(set[Any]):
    """Connections, counted in a cell that other processes see."""

    def __init__(self, cells: memoryview, me: int) -> None:
        super().__init__()
        self._cells = cells
        self._me = me
        cells[me] = 0

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._cells[self._me] = len(self)

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._cells[self._me] = len(self)


class Listener:
    """What `asyncio.Server` is to uvicorn. The socket is its maker's, and may be closed after `close`. `connections`:
    how many each process has, of which this is number `me`; `ABSENT` for one that takes none."""

    def __init__(
        self, sock: socket.socket, make: Callable[[], asyncio.Protocol], connections: memoryview, me: int
    ) -> None:
        self._sock = sock
        self._make = make
        self._connections = connections
        self._me = me
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stood_back = False
        self._opening: set[asyncio.Task[Any]] = set()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        self._connections[self._me] = ABSENT
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())

    async def wait_closed(self) -> None:
        if self._opening:
            await asyncio.wait(self._opening)

    def _readable(self) -> None:
        if not self._stood_back and self._busier():
            self._stood_back = True
            self._pause(COURTESY)
            return
        self._stood_back = False
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as exc:
            log.error("can't take a connection: %s; trying again in a second", exc.strerror)
            self._pause(EXHAUSTED)
            return
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # it left at once
            connection.close()

    def _busier(self) -> bool:
        mine = self._connections[self._me] + len(self._opening)
        others = [there for there in self._connections if there != ABSENT]
        least = min(others, default=mine)
        return mine > least + least // 8

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._readable)
