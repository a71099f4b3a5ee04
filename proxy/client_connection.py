"""One connection from a client: HTTP/1.1 in, ASGI calls to the application, HTTP/1.1 out.

uvicorn's server runs it in place of its own protocol (`http` in its configuration): sockets, start and drain are
uvicorn's. Here a head leaves in one write with what follows it, nothing is looked at twice, and no timer is set for
each request; docs/data-path.md has what that saves. It bounds what a client may have it hold, notices one that left
even behind a pipelined request, and says what is wrong in OpenAI's envelope.

Not here: what a request means. It knows no endpoint and no error of the house but how a broken request is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.server import ServerState

from proxy.errors import error
from proxy.wire import dump_error

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

MAX_HEAD: Final = 64 * 1024  # bytes of a request's head, or of its trailers
MAX_HEADERS: Final = 256  # trailers included
AHEAD: Final = 256 * 1024  # bytes that are held of a body that nobody reads yet, or of requests sent ahead
DISCARD: Final = 1024 * 1024  # bytes of a body that are read for nothing, after its answer, to keep the connection
STALLED: Final = 300.0  # seconds for which a client may read nothing of its answer
LINGER: Final = 0.5  # seconds in which a refused client may still send, so that it reads why before a reset
TOO_LARGE: Final = "The request's headers are too large."
_STATUS_LINES: Final = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_BODILESS: Final = frozenset((204, 304))


class TooManyHeaders(Exception):
    """Stops the parser."""


class ClientConnection(asyncio.Protocol):
    """One at a time is answered. What came ahead in the same read is parsed and waits its turn; the rest isn't parsed
    before."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = cast(App, config.loaded_app)
        self._idle_limit = float(config.timeout_keep_alive)
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made sets it
        self._ends: dict[str, Any] = {}  # the scope's members that are the connection's
        self._request: Request | None = None  # being answered
        self._incoming: Request | None = None  # being read: that one, or the last of those that wait
        self._waiting: deque[Request] = deque()  # behind it
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head = 0  # bytes read of a head that isn't complete
        self._reading_head = False
        self._ahead: deque[bytes] = deque()  # not parsed yet
        self._ahead_size = 0
        self._deaf = False  # whatever still comes is thrown away
        self._closing = False
        self._reading = True
        self._writable = asyncio.Event()  # not set: the client reads too slowly
        self._writable.set()
        self._since = self._loop.time()  # of the last change between busy, idle and stalled
        self._timer = self._loop.call_later(self._idle_limit, self._look)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks no more of it than `shutdown`
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._ends = {
            "type": "http",
            "asgi": _ASGI,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "server": (str(own[0]), int(own[1])) if isinstance(own, tuple) else (str(own), None),
            "client": (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None,
            "root_path": "",
        }

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        request = self._request
        if request is None or (request is self._incoming and not request.read):
            self._feed(data)
            return
        self._ahead.append(data)  # the one before isn't answered yet
        self._ahead_size += len(data)
        if self._ahead_size > AHEAD:
            self._pause()

    def eof_received(self) -> None:
        """It left. (One that only stopped sending looks the same, and gets no answer.)"""

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._timer.cancel()
        self._ahead.clear()
        self._waiting.clear()
        if self._request is not None:
            self._request.disconnect()
        self.resume_writing()
        self._parser = None  # it refers back to this

    def pause_writing(self) -> None:
        self._writable.clear()
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._writable.set()

    def shutdown(self) -> None:
        """The server wants to end: close once nothing is under way."""
        if self._request is None:
            self._transport.close()
        else:
            self._request.keep_alive = False

    # -- httptools -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._reading_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) == MAX_HEADERS:
            raise TooManyHeaders
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._reading_head = False
        parser = self._parser
        version: str = parser.get_http_version()
        parsed = httptools.parse_url(self._url)
        raw = parsed.path or b"/"
        path = raw.decode("ascii")
        scope = {
            **self._ends,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw,
            "query_string": parsed.query or b"",
            "headers": self._headers,
        }
        self._incoming = request = Request(self, scope, version != "1.0" and parser.should_keep_alive())
        if self._request is None:
            self._start(request)
        else:
            self._waiting.append(request)

    def on_body(self, body: bytes) -> None:
        request = self._incoming
        assert request is not None
        held = request.take(body)
        if request.complete:
            if held > DISCARD:
                self._close_gently()
        elif held > AHEAD:
            self._pause()

    def on_message_complete(self) -> None:
        request = self._incoming
        assert request is not None
        request.end_body()
        if request.complete:  # the answer was faster
            self._loop.call_soon(self._next)

    # -- for a request ---------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    @property
    def slow(self) -> bool:
        """The client reads too slowly: `drain` before more is written."""
        return not self._writable.is_set()

    async def drain(self) -> None:
        await self._writable.wait()

    def want_body(self) -> None:
        """What was held of a body is taken: read on."""
        self._resume()

    def head_lines(self) -> list[tuple[bytes, bytes]]:
        """Headers that the server puts on every answer: the date."""
        return self._state.default_headers

    def answered(self, request: Request) -> None:
        """That answer is complete."""
        self._state.total_requests += 1
        if self._transport.is_closing():
            return
        self._since = self._loop.time()
        if not request.keep_alive:
            self._close_gently()
        elif request.read:
            self._next()
        else:
            self._resume()  # the rest of its body stands before the next request

    # -- inside ----------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """To the next request, which may have come already."""
        self._request = None
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._deaf:
            self._close_gently()
            return
        self._resume()
        ahead, self._ahead, self._ahead_size = self._ahead, deque(), 0
        while ahead:
            self.data_received(ahead.popleft())

    def _start(self, request: Request) -> None:
        self._request = request
        task = self._loop.create_task(self._run(request))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _run(self, request: Request) -> None:
        try:
            await self._app(request.scope, request.receive, request.send)
        finally:
            if not request.complete:  # broken off, or a bug: its client sees that by the missing end
                self._transport.close()

    def _feed(self, data: bytes) -> None:
        self._head = self._head + len(data) if self._reading_head else len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # served as if it hadn't asked for another protocol
            if self._incoming is not None:
                self._incoming.keep_alive = False
        except httptools.HttpParserError as exc:
            many = isinstance(exc.__context__, TooManyHeaders)
            self._refuse(TOO_LARGE if many else f"This is not an HTTP/1.1 request ({exc}).")
            return
        if self._reading_head and self._head > MAX_HEAD:
            self._refuse(TOO_LARGE)

    def _refuse(self, message: str) -> None:
        """400, unless an answer has begun or is due for a request before it; the connection ends either way."""
        if self._transport.is_closing():
            return
        request = self._request
        if request is not None and request.read and not request.complete:
            self._deaf = True
            if self._waiting and not self._waiting[-1].read:
                self._waiting.pop()
            return
        if request is None or not request.started:
            body = dump_error(error("invalid_value", message))
            self._transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (_STATUS_LINES[400], len(body), body)
            )
        if request is not None:
            request.disconnect()
        self._close_gently()

    def _close_gently(self) -> None:
        """Close, but not upon a client that is still sending: it would meet a reset and lose the answer."""
        if self._closing:
            return
        self._closing = self._deaf = True
        self._resume()
        if self._transport.can_write_eof() and (self._request is None or not self._request.read):
            self._transport.write_eof()
            self._loop.call_later(LINGER, self._transport.close)
        else:
            self._transport.close()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _look(self) -> None:
        """Now and then: is it idle, or its client stalled, for too long?"""
        busy = self._request is not None and not self._request.complete
        limit = STALLED if self.slow else self._idle_limit
        left = limit - (self._loop.time() - self._since)
        if busy and not self.slow:
            left = limit
        elif left <= 0:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(left, self._look)


class Request:
    """One request and its answer, as ASGI sees them: `scope`, `receive` and `send`."""

    __slots__ = (
        "_body", "_chunked", "_connection", "_continue", "_gone", "_head", "_length", "_size", "_told", "_waiter",
        "complete", "keep_alive", "read", "scope", "started",
    )  # fmt: skip

    def __init__(self, connection: ClientConnection, scope: dict[str, Any], keep_alive: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.read = False  # all of its body has come
        self.started = False
        self.complete = False
        self._connection = connection
        self._body: list[bytes] = []
        self._size = 0
        self._told = False  # the application has all of it
        self._gone = False
        self._continue = any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])
        self._waiter: asyncio.Future[None] | None = None
        self._head: bytes | None = None  # not written yet
        self._chunked = False
        self._length = 0  # bytes of body still to be written

    # -- from the connection ---------------------------------------------------------------------------------

    def take(self, body: bytes) -> int:
        """A piece of its body; how much is held, or was thrown away behind the answer."""
        self._size += len(body)
        if not self.complete:
            self._body.append(body)
            self._wake()
        return self._size

    def end_body(self) -> None:
        self.read = True
        self._wake()

    def disconnect(self) -> None:
        self._gone = True
        self._wake()

    # -- ASGI ------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The body, as far as it has come; then, when the client left or has its answer, the disconnect."""
        while not self._gone and not self.complete:
            if self._body or (self.read and not self._told):
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body.clear()
                self._size, self._told = 0, self.read
                return {"type": "http.request", "body": body, "more_body": not self.read}
            if not self.read:
                self._ask_for_body()
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Waits while the client reads too slowly. What is sent to one that left goes nowhere."""
        if self._connection.slow and not self._gone:
            await self._connection.drain()
        if self._gone:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        self._write(body, more)
        if not more:
            self.complete = True
            self._wake()
            self._connection.answered(self)

    def _ask_for_body(self) -> None:
        if self._continue and not self.started:
            self._continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._connection.want_body()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head, which leaves with the first of the body."""
        self._chunked = False
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        length: bytes | None = None
        for pair in (*self._connection.head_lines(), *headers):
            lines.append(b"%b: %b\r\n" % pair)
            if pair[0] == b"content-length":
                length = pair[1]
        if self.scope["method"] == "HEAD" or status in _BODILESS:
            self._length = 0
        elif length is not None:
            self._length = int(length)
        elif self.scope["http_version"] == "1.0":  # knows no chunks: the end of the connection is the end of the body
            self.keep_alive = False
            self._length = -1
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ValueError("a header of the answer holds a line break")
        self._head = head + b"\r\n"
        self.started = True

    def _write(self, body: bytes, more: bool) -> None:
        head, self._head = self._head, None
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        elif self.scope["method"] == "HEAD":
            data = b""
        else:
            data = body
            if self._length >= 0:
                self._length -= len(body)
                if self._length < 0 or (self._length and not more):
                    raise ValueError("an answer's body is not as long as its head says")
        if head is not None:
            data = head + data
        if data:
            self._connection.write(data)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
