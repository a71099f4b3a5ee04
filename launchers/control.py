"""The control API: HTTP in, wishes to the supervisor out (docs/launcher-api.md is its contract).

Raw ASGI under Starlette's routing. An answer that goes on is raced against its client's leaving, since leaving is how a
lease is given back. Not here: the socket and its server (`__main__`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import platform
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route, Router

from launchers.engine import ManagedEngine
from launchers.spec import SpecError
from launchers.supervisor import Supervisor

log = logging.getLogger("illm.launcher")

PING: Final = 10.0  # seconds of silence
FAREWELL: Final = 1.0  # seconds in which the connection of a gateway that has ended is seen to be gone
NDJSON: Final = "application/x-ndjson"
TEXT: Final = "text/plain; charset=utf-8"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = Callable[[Scope], Awaitable[tuple[int, Any]]]
Pieces = Callable[[Scope], AsyncGenerator[bytes, None]]


class Refused(Exception):
    """What was asked can't be done; becomes OpenAI's envelope."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Control:
    """The API of one supervisor. `name`: the launcher's. `shutdown`: asks the program to end (True: leaving the engines
    alone). `for_gateway`: it is there for a gateway that started it."""

    def __init__(
        self, supervisor: Supervisor, name: str, version: str, shutdown: Callable[[bool], None], *, for_gateway: bool
    ) -> None:
        self._name = name
        self._supervisor = supervisor
        self._version = version
        self._shutdown = shutdown
        self._for_gateway = for_gateway

    def app(self, api_key: str | None) -> App:
        """An ASGI application; with a key it answers nobody who doesn't send it."""
        routes = [
            Route("/", Whole(self.about), methods=["GET"]),
            Route("/engines", Whole(self.engines), methods=["GET"]),
            Route("/engines/{name}", Whole(self.engine), methods=["GET"]),
            Route("/engines/{name}/ensure", Stream(self.ensure, NDJSON), methods=["POST"]),
            Route("/engines/{name}/start", Stream(self.start, NDJSON), methods=["POST"]),
            Route("/engines/{name}/stop", Whole(self.stop), methods=["POST"]),
            Route("/engines/{name}/logs", Stream(self.logs, TEXT), methods=["GET"]),
            Route("/events", Stream(self.events, NDJSON), methods=["GET"]),
            Route("/reload", Whole(self.reload), methods=["POST"]),
            Route("/shutdown", Whole(self.shutdown), methods=["POST"]),
        ]
        return Guard(Router(routes, default=unknown), api_key)

    # --- whole answers ----------------------------------------------------------------------------------------------

    async def about(self, _: Scope) -> tuple[int, Any]:
        supervisor = self._supervisor
        readings, budget = await supervisor.room.read()
        devices = [
            {
                "device": device,
                "total": readings[device].total if device in readings else None,
                "free": readings[device].free if device in readings else None,
                "budget": budget.get(device),
            }
            for device in sorted({*readings, *budget})
        ]
        launcher = supervisor.document.launcher
        return 200, {
            "launcher": "illm",
            "name": self._name,
            "version": self._version,
            "pid": os.getpid(),
            "host": platform.node(),
            "file": launcher.file,
            "orphans": launcher.orphans,
            "for_gateway": self._for_gateway,
            "devices": devices,
        }

    async def engines(self, _: Scope) -> tuple[int, Any]:
        return 200, {"engines": [engine.row() for engine in self._supervisor.engines()]}

    async def engine(self, scope: Scope) -> tuple[int, Any]:
        return 200, self._named(scope).row()

    async def stop(self, scope: Scope) -> tuple[int, Any]:
        engine = self._named(scope)
        await asyncio.shield(engine.stop("somebody asked for it"))
        return 200, engine.row()

    async def reload(self, scope: Scope) -> tuple[int, Any]:
        try:
            todo = await asyncio.shield(self._supervisor.reload(dry_run=_flag(scope, "dry_run")))
        except SpecError as exc:
            raise Refused(400, "invalid_settings", f"{exc}\nNothing was changed.") from None
        return 200, todo.as_dict()

    async def shutdown(self, scope: Scope) -> tuple[int, Any]:
        leave = _flag(scope, "leave")
        if leave and self._supervisor.document.launcher.orphans != "adopt":
            raise Refused(400, "invalid_value", "Engines can be left running only with `launcher.orphans: adopt`.")
        if _flag(scope, "if_unused") and (users := await self._supervisor.board.left(FAREWELL)):
            raise Refused(
                409, "launcher_in_use", f"{users} more {'gateway uses' if users == 1 else 'gateways use'} it."
            )
        self._shutdown(leave)
        return 202, {"status": "ending"}

    # --- answers that go on -----------------------------------------------------------------------------------------

    async def events(self, _: Scope) -> AsyncGenerator[bytes, None]:
        board = self._supervisor.board
        mailbox = board.follow()
        try:
            yield _line({"event": "engines", "engines": [engine.row() for engine in self._supervisor.engines()]})
            while not board.closed:
                for event in await mailbox.take(PING) or [{"event": "ping"}]:
                    yield _line(event)
        finally:
            board.leave(mailbox)

    def ensure(self, scope: Scope) -> AsyncGenerator[bytes, None]:
        return self._wanted(self._named(scope), lease=True)

    def start(self, scope: Scope) -> AsyncGenerator[bytes, None]:
        return self._wanted(self._named(scope), lease=False)

    async def _wanted(self, engine: ManagedEngine, *, lease: bool) -> AsyncGenerator[bytes, None]:
        ticket = engine.ensure(lease=lease)
        try:
            while not ticket.told:
                for event in await ticket.take(PING) or [{"event": "ping"}]:
                    yield _line(event)
        finally:
            engine.release(ticket)

    async def logs(self, scope: Scope) -> AsyncGenerator[bytes, None]:
        output = self._named(scope).output
        tail = _query(scope).get("tail", "100")
        if not re.fullmatch(r"[0-9]{1,9}", tail):
            raise Refused(400, "invalid_value", "`tail` is a number of lines.")
        if not _flag(scope, "follow"):
            yield "".join(f"{line}\n" for line in output.last(int(tail))).encode()
            return
        yield b""  # the head, at once
        async with aclosing(output.follow(int(tail))) as lines:
            async for line in lines:
                yield f"{line}\n".encode()

    def _named(self, scope: Scope) -> ManagedEngine:
        name = scope["path_params"]["name"]
        engine = self._supervisor.engine(name)
        if engine is None:
            known = ", ".join(one.spec.name for one in self._supervisor.engines()) or "none"
            raise Refused(404, "engine_not_found", f"There is no engine '{name}' here. Known: {known}.")
        return engine


class Whole:
    """An endpoint whose answer is one JSON object."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = await self._answer(scope)
        await JSONResponse(body, status)(scope, receive, send)


class Stream:
    """An endpoint whose answer goes on, until it ends or its client leaves."""

    def __init__(self, pieces: Pieces, content_type: str) -> None:
        self._pieces = pieces
        self._content_type = content_type.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = self._pieces(scope)
        writing = asyncio.create_task(self._write(pieces, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)

    async def _write(self, pieces: AsyncGenerator[bytes, None], send: Send) -> None:
        begun = False
        async with aclosing(pieces):
            async for piece in pieces:
                if not begun:
                    headers = [(b"content-type", self._content_type), (b"cache-control", b"no-cache")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    begun = True
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Guard:
    """The key, and errors as answers."""

    def __init__(self, app: App, api_key: str | None) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scope["app"] = self  # so that the router raises what it would else answer in words of its own
        try:
            if self._expected is not None and not hmac.compare_digest(given, self._expected):
                raise Refused(401, "invalid_api_key", "The launcher needs its api_key as a bearer token.")
            await self._app(scope, receive, send)
        except Refused as exc:
            kind = "invalid_request_error"
            error = {"message": str(exc), "type": kind, "param": None, "code": exc.code}
            await JSONResponse({"error": error}, exc.status)(scope, receive, send)
        except HTTPException as exc:
            path = f"{scope['method']} {scope['path']}"
            message = f"There is no {path} here; docs/launcher-api.md lists what there is."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "method_not_allowed"}
            await JSONResponse({"error": error}, exc.status_code, exc.headers)(scope, receive, send)
        except SpecError as exc:
            error = {"message": str(exc), "type": "server_error", "param": None, "code": "launcher_error"}
            await JSONResponse({"error": error}, 500)(scope, receive, send)


async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """For paths that aren't there."""
    raise Refused(404, "unknown_url", f"There is no {scope['path']} here; docs/launcher-api.md lists what there is.")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _line(event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _query(scope: Scope) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}


def _flag(scope: Scope, name: str) -> bool:
    return _query(scope).get(name, "") in ("1", "true", "yes")
