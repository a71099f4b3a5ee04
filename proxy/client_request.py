"""One client request and its answer, as HTTP/1.1 carries them: the body as it comes, the head and body of the answer.

It has two faces. What the gateway uses on its hot path writes at once and waits for nothing (`begin`, `write`, `end`,
`watch`; docs/data-path.md has what that saves); `receive` and `send` are ASGI's, for everything that is written for
any server. An application finds it in the scope, as `illm.client`.

Not here: sockets and the order of requests (`client_connection`), and what a request means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

from proxy.chunks import LAST, chunk
from proxy.client_head import Head
from proxy.client_parser import Listener
from proxy.headers import RawHeaders

Message = MutableMapping[str, Any]

STATUS_LINES: Final = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_BODILESS: Final = frozenset((204, 304))


class Carrier(Listener):
    """The connection, as its requests see it; its parser sees it as a `Listener`."""

    __slots__ = ()

    loop: asyncio.AbstractEventLoop
    slow: bool  # the client reads too slowly

    def put(self, data: bytes) -> None:
        """Write these bytes; never waits."""

    async def drained(self) -> None:
        """Until the client has read enough."""

    def want_body(self) -> None:
        """What was held of a body is taken: read on."""

    def head_lines(self) -> bytes:
        """The end of every answer's head: the headers that the server puts there (the date), and the empty line."""
        raise NotImplementedError

    def answered(self, request: ClientRequest) -> None:
        """That answer is complete."""


class ClientRequest:
    """What is written for a client that left goes nowhere. `gone`, `read` and the like are for reading only."""

    __slots__ = (
        "_body", "_carrier", "_chunked", "_continue", "_head", "_length", "_size", "_told", "_waiter", "_watch",
        "complete", "gone", "head", "headers", "keep_alive", "loop", "names", "read", "resumed", "started", "task",
        "written",
    )  # fmt: skip

    def __init__(self, carrier: Carrier, head: Head) -> None:
        self.head = head
        self.loop = carrier.loop
        self.headers = head.headers
        self.names = head.names
        self.keep_alive = head.keep_alive
        self.read = False  # all of its body has come
        self.started = False
        self.complete = False
        self.gone = False  # the client left
        self.task: asyncio.Task[None] | None = None  # the application's for it; None before and after
        self.written = 0  # bytes of the answer's body, those included that went nowhere
        self.resumed: Callable[[], object] | None = None  # called when a client that was slow has caught up
        self._carrier = carrier
        self._body: list[bytes] = []
        self._size = 0
        self._told = False  # the application has all of it
        self._continue = (  # its body comes when told so
            b"expect" in head.names and head.names[b"expect"].lower() == b"100-continue" and head.version != "1.0"
        )
        self._watch: Callable[[], object] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head: bytes | None = None  # not written yet
        self._chunked = False
        self._length = 0  # bytes of body still to be written

    # -- from the connection ---------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> int:
        """A piece of its body; how much is held, or was thrown away behind the answer."""
        self._size += len(body)
        if not self.complete:
            self._body.append(body)
            self._wake()
        return self._size

    def on_end(self) -> None:
        """Its body is complete."""
        self.read = True
        self._wake()

    def on_left(self) -> None:
        """The client left."""
        self.gone = True
        self._wake()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch()

    # -- its body --------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What of the body has come since the last time. With `read` that was all."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._size, self._told = 0, self.read
        return body

    async def more(self) -> bool:
        """Until more of the body came, or its end. False: the client left."""
        if self._continue and not self.started:
            self._continue = False
            self._carrier.put(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._carrier.want_body()
        while not (self._body or self.read or self.gone or self.complete):
            await self._wait()
        return not self.gone

    # -- its answer ------------------------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """The client reads too slowly: what is written now is held in memory. Wait for `resumed` or `drained`."""
        return self._carrier.slow

    async def drained(self) -> None:
        """Until it is no longer slow, or gone."""
        await self._carrier.drained()

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Call that once when the client leaves, at once if it has; None: no longer."""
        if self.gone and callback is not None:
            callback()
        else:
            self._watch = callback

    def begin(self, status: int, headers: RawHeaders, length: int | None = None) -> None:
        """The head, which leaves with the first of the body. `length`: the body's, where `headers` don't tell it.
        Raises `ValueError` for a header with a line break."""
        self._chunked = False
        if self._continue and not self.read:  # nobody can tell whether that body still comes
            self.keep_alive = False
        parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines = len(headers)
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._length = int(value)
                length = -1
        if length is not None and length >= 0:
            parts += (b"content-length: ", str(length).encode(), b"\r\n")
            lines += 1
            self._length = length
        if self.head.method == "HEAD" or status in _BODILESS:
            self._length = 0
        elif length is None:
            if self.head.version == "1.0":  # knows no chunks: the end of the connection is the end of the body
                self.keep_alive = False
                self._length = -1
            else:
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
                lines += 1
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
            lines += 1
        head = b"".join(parts)
        if head.count(b"\n") != lines + 1 or head.count(b"\r") != lines + 1:
            raise ValueError("a header of the answer holds a line break")
        self._head = head + self._carrier.head_lines()
        self.started = True

    def write(self, body: bytes) -> bool:
        """Part of the body. Never waits. False: hold back what follows, as the client is `slow`. Raises `ValueError`
        for more than the head said."""
        self.written += len(body)
        if self.gone:
            return True
        if self._chunked and self._head is None and body:  # nearly all of a stream
            self._carrier.put(chunk(body))
        else:
            self._put(body, last=False)
        return not self._carrier.slow

    def end(self, body: bytes = b"") -> None:
        """The last of the body. Raises `ValueError` for less or more than the head said."""
        self.written += len(body)
        if self.gone:
            return
        self._put(body, last=True)
        self.complete = True
        self._wake()
        self._carrier.answered(self)

    # -- ASGI ------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The body, as far as it has come; then, when the client left or has its answer, the disconnect."""
        while not self.gone and not self.complete:
            if self._body or (self.read and not self._told):
                body = self.take()
                return {"type": "http.request", "body": body, "more_body": not self.read}
            if self.read:
                await self._wait()
            else:
                await self.more()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Waits while the client reads too slowly."""
        if self.slow and not self.gone:
            await self.drained()
        if message["type"] == "http.response.start":
            if not self.gone:
                self.begin(message["status"], message["headers"])
        elif message.get("more_body", False):
            self.write(message.get("body", b""))
        else:
            self.end(message.get("body", b""))

    # -- inside ----------------------------------------------------------------------------------------------

    def _put(self, body: bytes, *, last: bool) -> None:
        head, self._head = self._head, None
        if self._chunked:
            data = chunk(body) if body else b""
            if last:
                data += LAST
        elif self.head.method == "HEAD":
            data = b""
        else:
            data = body
            if self._length >= 0:
                self._length -= len(body)
                if self._length < 0 or (self._length and last):
                    raise ValueError("an answer's body is not as long as its head says")
        if head is not None:
            data = head + data
        if data:
            self._carrier.put(data)

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
