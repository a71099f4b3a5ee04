"""One connection from a client: HTTP/1.1 in, ASGI calls to the application, HTTP/1.1 out.

uvicorn's server runs it in place of its own protocol (`http` in its configuration): sockets, start and drain are
uvicorn's. Here a head leaves in one write with what follows it, nothing is looked at twice, and no timer is set for
each request; docs/data-path.md has what that saves. It bounds what a client may have it hold, notices one that left
even behind a pipelined request, and says what is wrong in OpenAI's envelope.

Not here: what a request means. It knows no endpoint and no error of the house but how a broken request is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, cast

import uvicorn
from uvicorn.server import ServerState

from proxy.client_head import Head, Heads
from proxy.client_parser import ClientParser, NotHttp
from proxy.client_request import STATUS_LINES, Carrier, ClientRequest
from proxy.errors import error
from proxy.sweep import Sweep
from proxy.wire import dump_error

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

AHEAD: Final = 256 * 1024  # bytes that are held of a body that nobody reads yet, or of requests sent ahead
DISCARD: Final = 1024 * 1024  # bytes of a body that are read for nothing, after its answer, to keep the connection
STALLED: Final = 300.0  # seconds for which a client may read nothing of its answer
LOOK: Final = 1.0  # seconds between two looks whether a client is idle or stalled
LINGER: Final = 0.5  # seconds in which a refused client may still send, so that it reads why before a reset
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class ClientConnection(Carrier):
    """An `asyncio.Protocol`, which it doesn't inherit from: a compiled class with such a base must never be referred to
    weakly, and that nobody would know. One request at a time is answered. What came ahead in the same read is parsed
    and waits its turn; the rest isn't parsed before. Shared with others: `heads`, which they have had, and `sweep`,
    which looks for clients that are idle or stalled."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        heads: Heads | None = None,
        sweep: Sweep | None = None,
    ) -> None:
        self._app = cast(App, config.loaded_app)
        self._idle_limit = float(config.timeout_keep_alive)
        self._state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self._parser: ClientParser | None = ClientParser(self, heads)  # None: the client left
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made sets it
        self._scope: dict[str, Any] = {}  # the members that are the connection's, and the last head's
        self._request: ClientRequest | None = None  # being answered
        self._incoming: ClientRequest | None = None  # being read: that one, or the last of those that wait
        self._waiting: list[ClientRequest] = []  # behind it
        self._last: Head | None = None  # that came
        self._ahead: list[bytes] = []  # not parsed yet
        self._ahead_size = 0
        self._deaf = False  # whatever still comes is thrown away
        self._closing = False
        self._reading = True
        self.slow = False  # the client reads too slowly
        self._held_up: list[asyncio.Future[None]] = []  # who waits until it doesn't
        self._dated: list[tuple[bytes, bytes]] | None = None  # what `_date` was made of
        self._date = b""
        self._since = self.loop.time()  # of the last change between busy, idle and stalled
        self._unread = 0  # bytes that a slow client had not read at the last look
        self._sweep = sweep if sweep is not None else Sweep(LOOK)
        self._sweep.add(self._look, self.loop)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks no more of it than `shutdown`
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._scope = {
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
        if self._hungry():
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
        self._sweep.discard(self._look)
        self._ahead.clear()
        self._waiting.clear()
        if self._request is not None:
            self._request.on_left()
        if self._parser is not None:
            self._parser.close()
        self._parser = self._request = self._incoming = None  # they refer back to this
        self._let_go()  # nobody waits any more, but a client that was slow hasn't caught up

    def pause_writing(self) -> None:
        self.slow = True
        self._since = self.loop.time()

    def resume_writing(self) -> None:
        self.slow = False
        self._let_go()
        request = self._request
        if request is not None and request.resumed is not None:
            request.resumed()

    def shutdown(self) -> None:
        """The server wants to end: close once nothing is under way."""
        if self._request is None:
            self._transport.close()
        elif self._request.complete:  # only the rest of its body is still to come
            self._close_gently()
        else:
            self._request.keep_alive = False

    # -- from the parser -------------------------------------------------------------------------------------

    def on_head(self, head: Head) -> None:
        """A request begins."""
        if head is not self._last:
            self._last = head
            self._scope.update(head.scope())
        request = self._incoming = ClientRequest(self, head)
        if self._request is None:
            self._start(request)
        else:
            self._waiting.append(request)

    def on_data(self, body: bytes) -> None:
        """A piece of its body."""
        request = self._incoming
        assert request is not None
        held = request.on_body(body)
        if request.complete:
            if held > DISCARD:
                self._close_gently()
        elif held > AHEAD:
            self._pause()

    def on_end(self) -> None:
        """It is complete."""
        request = self._incoming
        assert request is not None
        request.on_end()
        if request.complete:  # the answer was faster
            self.loop.call_soon(self._next)

    # -- for a request ---------------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        if self.slow and self._request is not None:  # None: the client left
            waiter = self.loop.create_future()
            self._held_up.append(waiter)
            await waiter

    def want_body(self) -> None:
        """What was held of a body is taken: read on."""
        self._resume()

    def head_lines(self) -> bytes:
        """The end of every answer's head: the date, and the empty line."""
        headers = self._state.default_headers
        if headers is not self._dated:  # uvicorn makes them anew each second
            self._dated = headers
            self._date = b"".join([b"%b: %b\r\n" % pair for pair in headers]) + b"\r\n"
        return self._date

    def answered(self, request: ClientRequest) -> None:
        """That answer is complete."""
        self._state.total_requests += 1
        if self._transport.is_closing():
            return
        self._since = self.loop.time()
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
        if self._closing:
            return
        if self._waiting:
            self._start(self._waiting.pop(0))
        elif self._deaf:
            self._close_gently()
            return
        self._resume()
        while self._ahead and self._hungry() and not self._deaf:
            data = self._ahead.pop(0)
            self._ahead_size -= len(data)
            self._feed(data)
        if self._ahead_size > AHEAD and not self._deaf:
            self._pause()

    def _let_go(self) -> None:
        held_up, self._held_up = self._held_up, []
        for waiter in held_up:
            if not waiter.done():
                waiter.set_result(None)

    def _hungry(self) -> bool:
        """Is what comes next to be parsed at once, and not held until the request before it is answered?"""
        request = self._request
        return request is None or (request is self._incoming and not request.read)

    def _start(self, request: ClientRequest) -> None:
        self._request = request
        request.task = self.loop.create_task(self._run(request))
        self._state.tasks.add(request.task)

    async def _run(self, request: ClientRequest) -> None:
        head = request.head
        scope = self._scope.copy()
        if head is not self._last:
            scope.update(head.scope())
        scope["illm.client"] = request  # which doesn't know the scope: that were a circle
        try:
            await self._app(scope, request.receive, request.send)
        finally:
            task, request.task = request.task, None  # which refers back to it
            if task is not None:
                self._state.tasks.discard(task)
            if not request.complete:  # broken off, or a bug: its client sees that by the missing end
                self._transport.close()

    def _feed(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed(data)
        except NotHttp as exc:
            self._refuse(str(exc))

    def _be_deaf(self) -> None:
        """Whatever still comes is thrown away."""
        self._deaf = True
        if self._parser is not None:
            self._parser.end()

    def _refuse(self, message: str) -> None:
        """400, unless an answer has begun or is due for a request before it; the connection ends either way."""
        if self._transport.is_closing():
            return
        request = self._request
        if request is not None and request.read and not request.complete:
            self._be_deaf()
            if self._waiting and not self._waiting[-1].read:
                self._waiting.pop()
            return
        if request is None or not request.started:
            body = dump_error(error("invalid_value", message))
            self._transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (STATUS_LINES[400], len(body), body)
            )
        if request is not None:
            request.on_left()
        self._close_gently()

    def _close_gently(self) -> None:
        """Close, but not upon a client that is still sending: it would meet a reset and lose the answer."""
        if self._closing:
            return
        self._closing = True
        self._be_deaf()
        self._resume()
        if self._transport.can_write_eof() and (self._request is None or not self._request.read):
            self._transport.write_eof()
            self.loop.call_later(LINGER, self._transport.close)
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
        if self.slow:
            limit, unread = STALLED, self._transport.get_write_buffer_size()
            if unread != self._unread:  # it reads, if slowly
                self._unread, self._since = unread, self.loop.time()
        elif self._request is not None and not self._request.complete:
            return
        else:
            limit = self._idle_limit
        if self.loop.time() - self._since >= limit:
            self._transport.abort()
