"""What the fault tests share: a client that does what libraries don't let one do, streams as engines write them, and
the checks that nothing is left over. The gateway and the scripted engine are `tests.proxy.harness`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from proxy.pool import Backend
from tests.proxy.harness import PATIENCE, Engine, Got, Handler, Line, Running, engine, gateway, one_backend, until

CHAT = {"model": "pub", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
SSE = {"content-type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"
PATHS = {
    "chat": ("/v1/chat/completions", STREAM),
    "completions": ("/v1/completions", {"model": "pub", "prompt": "hi", "stream": True}),
    "responses": ("/v1/responses", {"model": "pub", "input": "hi", "stream": True}),
    "messages": ("/v1/messages", CHAT | {"max_tokens": 9, "stream": True}),
}
CHAT_PATH = PATHS["chat"][0]
REPLY = json.dumps({"id": "c", "object": "chat.completion", "model": "up", "choices": []}).encode()


def event(text: str, model: str = "up", finish: str | None = None) -> bytes:
    """A chat chunk as engines write it."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def ok(_: Got, line: Line) -> None:
    """Answers a plain chat."""
    await line.reply(200, REPLY)


async def never(_: Got, line: Line) -> None:
    """Says nothing."""
    await line.closed.wait()


class Client:
    """A bare HTTP/1.1 connection to the gateway. Reads only what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(path, {"content-length": str(len(data))} | dict(headers or {}))
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, path: str, headers: Mapping[str, str]) -> None:
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json"]
        self.writer.write("\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode())
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        async with asyncio.timeout(PATIENCE):
            first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in rest if line)}

    async def piece(self) -> bytes:
        """The next chunk as the gateway wrote it; b"" at the end."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """All that is still to come of a chunked body."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def until(self, mark: bytes) -> bytes:
        """Pieces up to the one that holds `mark`."""
        got = b""
        while mark not in got:
            piece = await self.piece()
            assert piece, f"the stream ended without {mark!r}: {got!r}"
            got += piece
        return got

    async def everything(self) -> bytes:
        """Until the gateway closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def leave(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def client(url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    where = urlsplit(url)
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
    one = Client(*await asyncio.open_connection(sock=sock))
    try:
        yield one
    finally:
        one.leave()
        with contextlib.suppress(OSError):
            await one.writer.wait_closed()


@contextlib.asynccontextmanager
async def scene(
    handler: Handler | None, *, kind: str = "vllm", backend: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Engine, Running]]:
    """One engine behind one gateway; `settings` are sections of the file."""
    async with engine(handler) as upstream:
        whole = one_backend(upstream.root, kind, **(backend or {})) | settings
        async with gateway(whole) as gate:
            yield upstream, gate


@contextlib.asynccontextmanager
async def replicas(first: Handler, second: Handler, **settings: Any) -> AsyncIterator[tuple[Engine, Engine, Running]]:
    """Two engines for the model `pub`, equally good: the first request goes to the first."""
    async with engine(first) as a, engine(second) as b:
        whole: dict[str, Any] = {
            "backends": {name: {"kind": "vllm", "base_url": e.root} for name, e in (("a", a), ("b", b))},
            "models": {"pub": {"replicas": [{"backend": "a", "model": "up"}, {"backend": "b", "model": "up"}]}},
        }
        async with gateway(whole | settings) as gate:
            yield a, b, gate


def backend(gate: Running, name: str = "b") -> Backend:
    return gate.gateway.registry.backends[name]


def strikes(gate: Running, name: str = "b") -> int:
    return len(backend(gate, name).breaker._strikes)


class Leftovers:
    """What a call may leave behind: compares with what there was before it."""

    def __init__(self, gate: Running) -> None:
        self._gate = gate
        self._before = asyncio.all_tasks()

    async def none(self) -> None:
        """No place taken, no task, no open connection of the calls since."""
        backends = self._gate.gateway.registry.backends.values()
        await until(lambda: all(b.in_flight == 0 and not b.places.queue for b in backends))
        try:
            await until(lambda: not self._new())
        except TimeoutError:
            raise AssertionError(f"left over: {self._new()}") from None

    def _new(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - self._before


async def left(gate: Running, leftovers: Leftovers, upstream: Engine | None = None) -> None:
    """The only call ended because its client left, and that has cost nobody anything."""
    (line,) = await gate.logged()
    assert line["status"] == 499
    assert strikes(gate) == 0
    if upstream is not None:
        await until(lambda: upstream.lines[-1].closed.is_set())
    await leftovers.none()


def errors(stream: bytes) -> list[dict[str, Any]]:
    """The error objects inside a stream."""
    events = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
    bodies = [json.loads(data) for data in events if data != "[DONE]"]
    return [body["error"] for body in bodies if body.get("error")]
