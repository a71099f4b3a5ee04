"""A launcher that says what a test tells it to: docs/launcher-api.md on a real socket, with uvicorn.

It starts nothing. A test opens its eyes (`tell`, `forget`), answers each `ensure` by hand or lets `answer` do it, and
sees which ones were opened and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.launcher_client import Address
from tests.proxy.harness import PATIENCE, Server, until

Event = dict[str, Any]


def row(name: str = "coder", state: str = "stopped", **more: Any) -> Event:
    """An engine's row."""
    return {
        "name": name, "model": name, "kind": "vllm", "state": state, "phase": "", "progress": None, "since": 1.0,
        "base_url": None, "api_key": None, "pid": None, "error": None,
    } | more  # fmt: skip


@dataclass
class Stream:
    """One answer of events, open until `end` or until the other side closes it."""

    name: str = ""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    lines: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def say(self, event: str, **members: Any) -> None:
        self.raw(json.dumps({"event": event, **members}).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        self.lines.put_nowait(data)

    def end(self) -> None:
        self.lines.put_nowait(None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As an ASGI response."""
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(self._left(receive))
        try:
            while True:
                line = asyncio.ensure_future(self.lines.get())
                await asyncio.wait([line, leaving], return_when=asyncio.FIRST_COMPLETED)
                if not line.done():
                    line.cancel()
                    return
                data = line.result()
                if data is None:
                    await send({"type": "http.response.body", "body": b""})
                    return
                await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            leaving.cancel()
            self.closed.set()

    @staticmethod
    async def _left(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@dataclass
class Launcher:
    """`answer` sees each new lease; None: the test does it by hand."""

    path: Path
    rows: dict[str, Event] = field(default_factory=dict)
    answer: Callable[[Stream], None] | None = None
    leases: list[Stream] = field(default_factory=list)
    followers: list[Stream] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refusal: Callable[[Request], Response | None] = lambda request: None
    server: uvicorn.Server | None = None
    serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        return Address("here", f"unix:{self.path}")

    def tell(self, name: str, state: str, **more: Any) -> None:
        """That engine's row is like this now."""
        self.rows[name] = row(name, state, **more)
        for one in self.followers:
            one.say("engine", engine=self.rows[name])

    def forget(self, name: str) -> None:
        del self.rows[name]
        for one in self.followers:
            one.say("removed", name=name)

    def ready(self, lease: Stream, root: str, **more: Any) -> None:
        """That lease's engine is ready there."""
        self.tell(lease.name, "ready", base_url=root, **more)
        lease.say("ready", engine=self.rows[lease.name])

    async def lease(self, number: int = 1) -> Stream:
        """The lease of that number, once it was asked for."""
        await until(lambda: len(self.leases) >= number)
        return self.leases[number - 1]

    @property
    def held(self) -> list[Stream]:
        return [lease for lease in self.leases if not lease.closed.is_set()]

    # -- the server ------------------------------------------------------------------------------------------

    async def listen(self, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(socket.AF_UNIX)
            self.path.unlink(missing_ok=True)
            sock.bind(str(self.path))
        config = uvicorn.Config(self._app(), lifespan="off", log_level="error", timeout_graceful_shutdown=1)
        self.server = Server(config)
        self.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self.serving = asyncio.ensure_future(self.server._serve(sockets=[sock]))
        await until(lambda: self.server is not None and self.server.started)

    async def leave(self) -> None:
        """As if it were killed: every connection breaks, nobody listens."""
        assert self.server is not None
        assert self.serving is not None
        self.cut()
        self.server.should_exit = True
        await asyncio.wait_for(self.serving, PATIENCE)

    def cut(self) -> None:
        """Break every connection."""
        assert self.server is not None
        self.followers.clear()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    def _app(self) -> Starlette:
        handlers: dict[tuple[str, str], Callable[[Request], Awaitable[Response | Stream]]] = {
            ("GET", "/"): self._about,
            ("GET", "/engines"): self._engines,
            ("GET", "/events"): self._events,
            ("POST", "/engines/{name}/ensure"): self._ensure,
            ("POST", "/engines/{name}/start"): self._ensure,
            ("POST", "/engines/{name}/stop"): self._stop,
            ("GET", "/engines/{name}/logs"): self._logs,
            ("POST", "/reload"): self._reload,
            ("POST", "/shutdown"): self._shutdown,
        }
        return Starlette(routes=[Route(path, self._watched(one), methods=[method])
                                 for (method, path), one in handlers.items()])  # fmt: skip

    def _watched(self, handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Any]]:
        async def watched(request: Request) -> Any:
            query = f"?{request.url.query}" if request.url.query else ""
            self.asked.append(f"{request.method} {request.url.path}{query}")
            return self.refusal(request) or await handler(request)

        return watched

    async def _about(self, _: Request) -> Response:
        return JSONResponse({"launcher": "illm", "version": "1", "pid": 1})

    async def _engines(self, _: Request) -> Response:
        return JSONResponse({"engines": list(self.rows.values())})

    async def _events(self, _: Request) -> Stream:
        one = Stream()
        one.say("engines", engines=list(self.rows.values()))
        self.followers.append(one)
        return one

    async def _ensure(self, request: Request) -> Response | Stream:
        lease = Stream(request.path_params["name"])
        if lease.name not in self.rows:
            told = {"error": {"message": f"There is no engine '{lease.name}'.", "type": "x", "code": "not_found"}}
            return JSONResponse(told, 404)
        self.leases.append(lease)
        if self.answer is not None:
            self.answer(lease)
        return lease

    async def _stop(self, request: Request) -> Response:
        return JSONResponse(self.rows[request.path_params["name"]])

    async def _logs(self, _: Request) -> Response:
        return PlainTextResponse("one\ntwo\n")

    async def _reload(self, _: Request) -> Response:
        return JSONResponse({"start": ["a"], "stop": [], "restart": [], "update": [], "keep": ["b"]})

    async def _shutdown(self, _: Request) -> Response:
        return Response(status_code=202)


@contextlib.asynccontextmanager
async def launcher(folder: Path, *rows: Event, **how: Any) -> AsyncIterator[Launcher]:
    """One that has those engines, on a unix socket in that folder."""
    one = Launcher(folder / "launcher.sock", {each["name"]: each for each in rows}, **how)
    await one.listen()
    try:
        yield one
    finally:
        await one.leave()
