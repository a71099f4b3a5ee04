"""TGI's event streams: the head, the `data` line of its version, a comment after a silence."""

import asyncio
from types import TracebackType
from typing import Any, Self

from tests.standins.server import Exchange, Headers
from tests.standins.tgi_rules import Settings, dumps

CORS = (
    ("vary", "origin, access-control-request-method, access-control-request-headers"),
    ("access-control-allow-origin", "*"),
)
_HEAD: Headers = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
    *CORS,
)


class Events:
    """An async context manager: the head goes out on entry, at once; the end of the body on a clean exit."""

    def __init__(self, exchange: Exchange, settings: Settings) -> None:
        self._exchange, self._settings = exchange, settings
        self._prefix = b"data: " if settings.since >= (2, 1) else b"data:"
        self._beat: asyncio.Task[None] | None = None

    async def send(self, value: Any) -> None:
        await self.send_raw(dumps(value))

    async def send_raw(self, data: bytes) -> None:
        self._restart()
        await self._exchange.write(self._prefix + data + b"\n\n")

    def _restart(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._beat = asyncio.get_running_loop().create_task(self._comments())

    async def _comments(self) -> None:
        while True:
            await asyncio.sleep(self._settings.keep_alive)
            await self._exchange.write(b":\n\n")

    async def __aenter__(self) -> Self:
        await self._exchange.start(200, _HEAD)
        self._restart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if exc is None:
            await self._exchange.finish()
