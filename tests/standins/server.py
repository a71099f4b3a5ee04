"""The HTTP/1.1 server under both stand-ins, on asyncio and httptools, so that every byte and every close is ours.

A stand-in gives it one coroutine function, `handle(exchange)`. Here live framing, keep-alive, the journal of what
arrived and who left, and the control paths below; nothing of what TGI or Ollama say.

    GET  /_standin/requests  [{id, method, path, headers, body}] in order of arrival; a JSON body as JSON
    GET  /_standin/closed    [{id, path, tokens, head_sent}]: the client left before the answer was complete, and how
                             many tokens had been generated when that was noticed (generation stops there)
    GET  /_standin/running   [{id, path, tokens}] of the requests in work now
    POST /_standin/faults    {"directive": {...}, "path"?: "/api/chat", "times"?: 1}: for the next requests
    POST /_standin/health    {"up": false}: from now on the health route says so, where the real one has a way to
    POST /_standin/release   lets a directive that is `held` go on
    POST /_standin/reset     forgets requests, closed, faults and that release
"""

import asyncio
import json
import socket
import struct
import sys
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools

CONTROL = "/_standin/"
Handler = Callable[["Exchange"], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Journal:
    requests: list[dict[str, Any]] = field(default_factory=list)
    closed: list[dict[str, Any]] = field(default_factory=list)
    running: dict[int, "Exchange"] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    healthy: bool = True
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def take_fault(self, path: str) -> dict[str, Any] | None:
        for fault in self.faults:
            if fault.get("path", path) == path:
                fault["times"] = fault.get("times", 1) - 1
                if fault["times"] <= 0:
                    self.faults.remove(fault)
                directive: dict[str, Any] = fault["directive"]
                return directive
        return None


class Exchange:
    """One request and the answer being given to it. Writing blocks while the client reads too slowly."""

    def __init__(self, connection: "_Connection", method: str, target: str, headers: Mapping[str, str], body: bytes):
        self.method, self.headers, self.body = method, headers, body
        self.path, _, self.query = target.partition("?")
        self.id = 0
        self.tokens = 0
        self.fault: dict[str, Any] | None = None
        self.healthy = True
        self.piece_size: int | None = None
        self.started = self.done = False
        self._connection = connection
        self._spoil: str | None = None

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode()

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer with its length."""
        if self._spoil == "garbage":
            body = body[: len(body) // 2]
        length = ("content-length", str(len(body)))
        if self.method == "HEAD":
            body = b""
        self.started = True
        await self._connection.send(self._head(status, (*headers, length)))
        if self._spoil == "cut":
            await self._connection.send(body[: len(body) // 2])
            self._connection.close()
            await asyncio.Future()
        if body:
            await self._connection.send(body)
        self.done = True

    async def start(self, status: int, headers: Headers) -> None:
        """The head of a chunked answer."""
        self.started = True
        await self._connection.send(self._head(status, (*headers, ("transfer-encoding", "chunked"))))

    async def write(self, data: bytes) -> None:
        size = self.piece_size or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            await self._connection.send(b"%X\r\n%s\r\n" % (len(piece), piece))
            if self.piece_size:
                await asyncio.sleep(0)

    async def finish(self) -> None:
        await self._connection.send(b"0\r\n\r\n")
        self.done = True

    async def released(self) -> None:
        """Until whoever tests says so."""
        await self._connection.journal.release.wait()

    async def garble(self, data: bytes) -> None:
        """Sends `data` into a running stream; a whole reply will be broken JSON."""
        if self.started:
            await self.write(data)
        else:
            self._spoil = "garbage"

    async def cut(self) -> None:
        """Ends the connection in the middle: at once in a stream, half-way through the body of a whole reply."""
        if not self.started:
            self._spoil = "cut"
            return
        self._connection.close()
        await asyncio.Future()

    def reset(self) -> None:
        self._connection.reset()


class _Connection(asyncio.Protocol):
    def __init__(self, handle: Handler, journal: Journal) -> None:
        self._handle, self.journal = handle, journal
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ours = False  # this side broke the connection, so the client did not leave

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._target, self._body = b"", bytearray()
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._waiting.append(Exchange(self, method, self._target.decode(), self._headers, bytes(self._body)))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
        self._writable.set()

    async def send(self, data: bytes) -> None:
        await self._writable.wait()
        self._transport.write(data)

    def close(self) -> None:
        self._ours = True
        self._transport.close()

    def reset(self) -> None:
        self._ours = True
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _work(self) -> None:
        try:
            while self._waiting:
                exchange = self._waiting.popleft()
                await self._one(exchange)
                if exchange.headers.get("connection", "").lower() == "close":
                    self._transport.close()
        finally:
            self._task = None

    async def _one(self, exchange: Exchange) -> None:
        if exchange.path.startswith(CONTROL):
            await _control(exchange, self.journal)
            return
        _note(exchange, self.journal)
        try:
            await self._handle(exchange)
        except asyncio.CancelledError:
            if not self._ours:
                gone = {"tokens": exchange.tokens, "head_sent": exchange.started}
                self.journal.closed.append({"id": exchange.id, "path": exchange.path, **gone})
            raise
        except Exception:  # noqa: BLE001 - a stand-in's own mistake must be loud, whatever it is
            traceback.print_exc(file=sys.stderr)
            self.reset()
        finally:
            self.journal.running.pop(exchange.id, None)


def _note(exchange: Exchange, journal: Journal) -> None:
    exchange.id = len(journal.requests) + 1
    try:
        body = json.loads(exchange.body) if exchange.body else None
    except ValueError:
        body = exchange.body.decode("utf-8", "replace")
    noted = {"method": exchange.method, "path": exchange.path, "headers": dict(exchange.headers), "body": body}
    journal.requests.append({"id": exchange.id, **noted})
    journal.running[exchange.id] = exchange
    exchange.fault = journal.take_fault(exchange.path)
    exchange.healthy = journal.healthy


async def _control(exchange: Exchange, journal: Journal) -> None:
    name = exchange.path.removeprefix(CONTROL)
    answer: object = {}
    if name == "requests":
        answer = journal.requests
    elif name == "closed":
        answer = journal.closed
    elif name == "running":
        answer = [{"id": each.id, "path": each.path, "tokens": each.tokens} for each in journal.running.values()]
    elif name == "faults":
        journal.faults.append(json.loads(exchange.body))
    elif name == "health":
        journal.healthy = json.loads(exchange.body)["up"]
    elif name == "release":
        journal.release.set()
    elif name == "reset":
        journal.release.clear()
        journal.requests, journal.closed, journal.faults = [], [], []
    await exchange.reply(200, (("content-type", "application/json"),), json.dumps(answer).encode())


async def serve(handle: Handler, host: str, port: int) -> None:
    """Listens and answers until the program is ended."""
    journal = Journal()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(handle, journal), host, port)
    async with server:
        await server.serve_forever()
