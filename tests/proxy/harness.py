"""A gateway and a scripted engine for tests, both over real sockets in the test's own event loop.

`Engine` is a bare HTTP/1.1 server that answers what a test tells it to, byte for byte, piece by piece, and records
what it was sent and when the connection was closed. For what a real engine does, tests talk to a real engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import httpx
import uvicorn

import proxy.control
from proxy.app import Gateway, create_app
from proxy.client_connection import ClientConnection
from proxy.launched import Launch
from proxy.launcher_client import Address
from proxy.settings import load_settings
from tests.engines.process import PATIENCE

# Nothing that a test doesn't ask for happens by the clock: a machine that stands still for some seconds must make no
# engine down, close no connection that was to be used again, and write no comment into a stream.
CALM: dict[str, dict[str, Any]] = {
    "discovery": {"local": False},
    "server": {"keep_alive_interval": 600.0},
    "health": {"timeout": PATIENCE, "interval": 600.0},
    "upstream": {"connect_timeout": PATIENCE, "idle_connection": 600.0},
}


def calm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings, and `CALM` where they say nothing else."""
    return {**settings, **{name: section | settings.get(name, {}) for name, section in CALM.items()}}


@dataclass
class Got:
    """A request that reached the engine."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Line:
    """The engine's end of one connection, for a handler to answer on."""

    writer: asyncio.StreamWriter
    closed: asyncio.Event

    async def head(self, status: int = 200, headers: Mapping[str, str] | None = None, *, chunked: bool = True) -> None:
        lines = [f"HTTP/1.1 {status} X"] + [f"{k}: {v}" for k, v in (headers or {}).items()]
        if chunked:
            lines.append("transfer-encoding: chunked")
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def reply(self, status: int, body: bytes, content_type: str = "application/json", **more: str) -> None:
        headers = {"content-type": content_type, "content-length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in more.items()
        }
        if not content_type:
            del headers["content-type"]
        await self.head(status, headers, chunked=False)
        self.writer.write(body)
        await self.writer.drain()

    def drop(self) -> None:
        """Close the connection as a crash does."""
        self.writer.transport.abort()


Handler = Callable[[Got, Line], Awaitable[None]]


@dataclass
class Engine:
    """A scripted engine. `handler` answers POST; GET says that it has the models `models`."""

    handler: Handler | None = None
    models: tuple[str, ...] = ("m",)
    owned_by: str = "vllm"
    tls: ssl.SSLContext | None = None
    got: list[Got] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    connections: int = 0
    looks: int = 0  # GETs
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    root: str = ""
    server: asyncio.Server | None = None

    async def listen(self, port: int = 0) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.server is None or not self.server.is_serving():
                try:
                    self.server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.tls)
                except OSError:  # somebody's connection has that very port meanwhile
                    await asyncio.sleep(0.05)
        self.root = f"http{'s' if self.tls else ''}://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        for line in self.lines:
            line.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        line = Line(writer, asyncio.Event())
        self.lines.append(line)
        answering: asyncio.Task[None] | None = None
        try:
            while (got := await self._read(reader)) is not None:
                if got.method == "GET":
                    self.looks += 1
                    await self._about(got, line)
                    continue
                self.got.append(got)
                self.arrived.set()
                assert self.handler is not None
                answering = asyncio.ensure_future(self.handler(got, line))
                watching = asyncio.ensure_future(reader.read(1))  # only a closed connection ends this one early
                await asyncio.wait([answering, watching], return_when=asyncio.FIRST_COMPLETED)
                if watching.done() and not watching.cancelled() and watching.exception() is None:
                    if watching.result() == b"":
                        break
                    raise AssertionError("the gateway wrote into an unfinished answer")
                if watching.done():
                    break
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                answering.result()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            line.closed.set()
            if answering is not None:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
            writer.close()

    async def _about(self, got: Got, line: Line) -> None:
        if got.path.endswith("/models"):
            data = [{"id": m, "object": "model", "owned_by": self.owned_by, "created": 5} for m in self.models]
            await line.reply(200, json.dumps({"object": "list", "data": data}).encode())
        elif got.path in ("/health", "/version", "/info"):
            info = {"version": "3.3.7", "model_id": self.models[0], "router": "text-generation-router"}
            await line.reply(200, json.dumps(info).encode())
        else:
            await line.reply(404, b'{"detail":"Not Found"}')

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Got | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest if line)}
        method, path, _ = first.split(" ")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Got(method, path, headers, body)


@contextlib.asynccontextmanager
async def engine(handler: Handler | None = None, **how: Any) -> AsyncIterator[Engine]:
    one = Engine(handler, **how)
    await one.listen()
    try:
        yield one
    finally:
        await one.close()


class Server(uvicorn.Server):
    """uvicorn that ends sooner: it looks ten times as often whether it shall."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Without the tenth of a second that uvicorn gives clients, where none is left."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(0.01)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for sock in sockets or []:
            sock.close()
        await self.lifespan.shutdown()


@dataclass
class Running:
    """A gateway that serves. `log` has its access lines."""

    url: str
    client: httpx.AsyncClient
    gateway: Gateway
    server: uvicorn.Server
    log: list[dict[str, Any]]

    async def logged(self, count: int = 1) -> list[dict[str, Any]]:
        """The access lines, once there are that many for relayed requests."""
        await until(lambda: len(self.lines()) >= count)
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["method"] == "POST"]


@contextlib.asynccontextmanager
async def gateway(
    settings: dict[str, Any],
    environ: Mapping[str, str] | None = None,
    launchers: Sequence[Address] = (),
    launch: Launch | None = None,
    first_round: float = PATIENCE,
) -> AsyncIterator[Running]:
    """`settings` as a settings file would hold them, over `CALM`. When it serves, each engine was asked once; with one
    that never answers, give it a `first_round` of fewer seconds."""
    log: list[dict[str, Any]] = []
    loaded = load_settings(None, environ or {}, calm(settings))
    built = create_app(loaded, sink=log.append, launchers=launchers, launch=launch)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio asks: no delay for TCP only
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(built.app, http=ClientConnection, lifespan="on", log_level="error", access_log=False,
                            timeout_graceful_shutdown=2)  # fmt: skip
    server = Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.ensure_future(server._serve(sockets=[sock]))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        with mock.patch.object(proxy.control, "FIRST_ROUND", first_round):
            await until(lambda: server.started or serving.done())
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            yield Running(url, client, built, server, log)
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, PATIENCE)


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition that has no event; fails after `PATIENCE`."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)


def one_backend(root: str, kind: str = "vllm", **more: Any) -> dict[str, Any]:
    """Settings for a gateway in front of one engine, whose model `up` is public as `pub`."""
    return {
        "backends": {"b": {"kind": kind, "base_url": root, **more}},
        "models": {"pub": {"replicas": [{"backend": "b", "model": "up"}]}},
    }


def sse(text: str) -> list[str]:
    """The data of a stream's events; comments left out."""
    events = [block for block in text.split("\n\n") if block.strip() and not block.startswith(":")]
    assert all(line.startswith("data: ") for line in events), text
    return [line.removeprefix("data: ") for line in events]
