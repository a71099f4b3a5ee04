"""What parent and workers say to one another, over a socket pair that nobody else has: pickled, each behind its length.

The end of the channel means that the other one is gone. Not here: what is done about a message.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.launcher_client import Address
from proxy.metrics import Counted
from proxy.pool import Finding
from proxy.settings import Settings
from proxy.transport import Origin

_HEAD: Final = struct.Struct("!I")
Findings = tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """To a worker, first of all. `settings`: those that the gateway began with; `adopted`: those taken over since."""

    settings: Settings
    adopted: Settings
    findings: Findings
    launchers: tuple[Address, ...]
    via: str
    started: float


@dataclass(frozen=True, slots=True)
class Adopt:
    """To a worker: other settings, what the parent knows of their backends, and whose engines there are now."""

    settings: Settings
    findings: Findings
    launchers: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Know:
    """To a worker: all that the parent knows of the backends that it looks after."""

    findings: Findings


@dataclass(frozen=True, slots=True)
class Drain:
    """To a worker: let answers finish and end. `now`: end them at once, with a word to their clients."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class Draining:
    """From a worker: it lets so many requests finish."""

    requests: int


@dataclass(frozen=True, slots=True)
class Count:
    """To a worker: say what you have counted."""

    number: int


@dataclass(frozen=True, slots=True)
class Total:
    """To a worker that asked: the metrics of all."""

    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Serving:
    """From a worker: it serves."""


@dataclass(frozen=True, slots=True)
class Counting:
    """From a worker: its counters, as far as they have changed since it said so last. `number`: of the question."""

    counted: Counted
    connections: Mapping[Origin, int]
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """From a worker: what have all counted?"""

    number: int


class Channel:
    """One end. `receive` is for one task; `send` never waits, what it says is little and seldom."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """The socket is the channel's from now on."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: object) -> None:
        """Nothing is said to one that is gone."""
        if not self._writer.is_closing():
            self._writer.write(_packed(message))

    async def receive(self) -> Any:
        """The next message; None at the end."""
        try:
            (size,) = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            return _unpacked(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """After what was sent is written."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


def receive(sock: socket.socket) -> Any:
    """The next message of a channel that isn't one yet; None at its end. Blocks."""
    head = _exactly(sock, _HEAD.size)
    return _unpacked(_exactly(sock, _HEAD.unpack(head)[0])) if head else None


def _packed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(data)) + data


def _unpacked(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - from our own process, over a socket that has no name


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data
