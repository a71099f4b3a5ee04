"""Connections to upstreams, and nothing else: open, keep, write a request, parse the answer, close.

It knows HTTP/1.1 and neither dialects nor models nor clients. A `Connection` is an `asyncio.Protocol` over llhttp:
what the engine sends reaches the `Receiver` inside the read callback, with no task, queue or timer of its own for
each request (docs/data-path.md tells what that saves). Time limits are watched by one sweep over all connections.

Cookies are neither kept nor sent. Redirects are not followed: they are answers like others.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from proxy.headers import RawHeaders

SWEEP: Final = 1.0  # seconds between two looks at the time limits
IDLE_CONNECTIONS: Final = 512  # kept for one origin; more are closed after use


class TransportError(Exception):
    """The call to an engine broke. `reached` tells whether the engine may have begun to work on it."""

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


class ConnectFailed(TransportError):
    """No connection: nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=False)


class ConnectionLost(TransportError):
    """The engine closed, reset or garbled the connection before its answer was complete.

    `stale`: it was a kept connection and not one byte of an answer came, so the engine had most likely closed it
    before the request arrived.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message, reached=True)
        self.stale = stale


class UpstreamTimeout(TransportError):
    """The engine was silent for longer than the limit."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=True)


class SurplusAnswer(Exception):
    """Two answers in one read to one request; stops the parser between them."""


class Receiver(Protocol):
    """Who is told what comes back. Called from the event loop's read callback: none of these may block."""

    def on_head(self, status: int, headers: RawHeaders) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_lost(self, exc: TransportError) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits, in seconds."""

    connect: float = 5.0
    response: float = 600.0  # until the head
    idle: float = 600.0  # between two pieces of a body
    keep: float = 4.0  # an unused connection; engines close theirs after 5 s


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a base URL leads: what a connection needs, and what every request to it begins with."""

    host: str
    port: int
    tls: bool
    authority: bytes
    path: str  # a prefix of the base URL, without a trailing slash

    @classmethod
    def parse(cls, root: str) -> Origin:
        """From a base URL without `/v1`. Raises `ValueError` for what is no http(s) URL."""
        url = urlsplit(root)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"not an http(s) URL: {root!r}")
        tls = url.scheme == "https"
        port = url.port or (443 if tls else 80)
        name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        authority = name if url.port is None else f"{name}:{url.port}"
        return cls(
            url.hostname, port, tls, authority.encode("idna" if not name.isascii() else "ascii"), url.path.rstrip("/")
        )


class Connection(asyncio.Protocol):
    """One connection; carries one call at a time. Owned by its `Connections`, lent out between `start` and the end."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._loop = owner.loop
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._headers: RawHeaders = []
        self._pieces: list[bytes] = []
        self._complete = False
        self._keep = False
        self._answered = False  # any byte of this answer came
        self._uses = 0
        self._paused = False
        self.head_seen = False
        self.touched = 0.0  # loop time of the last byte either way

    # -- for whoever borrows it ------------------------------------------------------------------------------

    def start(self, request: bytes, receiver: Receiver) -> None:
        """Send one whole request; the answer goes to `receiver`. Doesn't block: the kernel and the transport's
        buffer take it (the body is in memory already and bounded by the body limit)."""
        assert self._transport is not None
        self._receiver = receiver
        self._uses += 1
        self._answered = self._complete = self.head_seen = False
        self.touched = self._loop.time()
        self._owner.active.add(self)
        self._transport.write(request)

    def pause(self) -> None:
        """Back-pressure: read no more until `resume`."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self.touched = self._loop.time()
            self._transport.resume_reading()

    def close(self) -> None:
        """Give the call up: the connection is closed at once, the receiver hears nothing more."""
        self._receiver = None
        self._drop()

    @property
    def reused(self) -> bool:
        return self._uses > 1

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def expire(self, what: str) -> None:
        """The sweep's verdict: silent for too long."""
        self._fail(UpstreamTimeout(what))

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class, only by what they do

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # an idle engine has nothing to say; whatever it is, it would spoil the next answer
            self._drop()
            return
        self.touched = self._loop.time()
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self._complete:
                self._fail(ConnectionLost(f"what it answered is not HTTP ({exc})"))
                return
            self._keep = False  # it said more than it was asked: the answer stands, the connection doesn't
        self._deliver()

    def eof_received(self) -> None:
        return None  # close: the parser decides in connection_lost whether that was the end of the body

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        receiver = self._receiver
        self._forget()
        if receiver is None:
            return
        self._receiver = None
        if self.head_seen and exc is None and self._until_eof():
            receiver.on_end()
        elif self._answered:
            receiver.on_lost(ConnectionLost("it closed the connection before the answer was complete"))
        else:
            receiver.on_lost(ConnectionLost("it closed the connection without an answer", stale=self.reused))

    # -- httptools -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            raise SurplusAnswer

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            return
        self.head_seen = True
        self._keep = self._parser.should_keep_alive()
        self._framed = any(k in (b"content-length", b"transfer-encoding") for k, _ in headers)
        if self._receiver is not None:
            self._receiver.on_head(status, headers)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._complete = self.head_seen

    # -- inside ----------------------------------------------------------------------------------------------

    _framed = True

    def _until_eof(self) -> bool:
        """A body with neither length nor chunks ends where the connection does."""
        return not self._framed

    def _deliver(self) -> None:
        """Everything that one read held, as one piece: fewer calls and fewer writes to the client."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if self._receiver is not None:
                self._receiver.on_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete and self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            self._owner.active.discard(self)
            self._release()
            receiver.on_end()

    def _release(self) -> None:
        self.resume()
        if self._keep and self._framed and self.usable:
            self._owner.keep(self)
        else:
            self._drop()

    def _fail(self, exc: TransportError) -> None:
        receiver, self._receiver = self._receiver, None
        self._drop()
        if receiver is not None:
            receiver.on_lost(exc)

    def _drop(self) -> None:
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _forget(self) -> None:
        self._owner.active.discard(self)
        self._owner.discard(self)


class Connections:
    """The connections to one origin."""

    def __init__(self, origin: Origin, limits: Limits, context: Callable[[], ssl.SSLContext]) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self.active: set[Connection] = set()
        self._limits = limits
        self._context = context
        self._idle: list[Connection] = []  # the most recently used last

    def take(self) -> Connection | None:
        """A kept connection that is still open; never waits."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises `ConnectFailed`."""
        origin = self.origin
        where = f"{origin.host}:{origin.port}"
        try:
            async with asyncio.timeout(self._limits.connect):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), origin.host, origin.port, ssl=self._context() if origin.tls else None
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection to {where} within {self._limits.connect:g} s") from None
        except ssl.SSLError as exc:
            raise ConnectFailed(f"TLS with {where} failed: {exc.reason or exc}") from None
        except OSError as exc:
            raise ConnectFailed(f"{where}: {_plain(exc)}") from None
        return connection

    def keep(self, connection: Connection) -> None:
        if len(self._idle) < IDLE_CONNECTIONS:
            connection.touched = self.loop.time()
            self._idle.append(connection)
        else:
            connection.close()

    def discard(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what is idle for too long; end calls whose engine is silent for too long."""
        limits = self._limits
        for connection in [c for c in self._idle if now - c.touched > limits.keep]:
            connection.close()
        for connection in list(self.active):
            if connection.paused:  # silent because the client is slow: not the engine's fault
                continue
            limit = limits.idle if connection.head_seen else limits.response
            if now - connection.touched > limit:
                connection.expire(f"no {'further data' if connection.head_seen else 'answer'} within {limit:g} s")

    def close(self) -> None:
        for connection in [*self._idle, *self.active]:
            connection.close()

    @property
    def open(self) -> int:
        return len(self._idle) + len(self.active)


class Transport:
    """All upstream connections of one gateway. Whoever makes it calls `close`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._origins: dict[Origin, Connections] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def send(self, origin: Origin, request: bytes, receiver: Receiver) -> Connection:
        """Send one request; waits only where a new connection has to be made. The caller owns the connection until
        the receiver heard `on_end` or `on_lost`, and closes it if it gives up before. Raises `ConnectFailed`."""
        connections = self._origins.get(origin)
        if connections is None:
            connections = self._origins[origin] = Connections(origin, self._limits, self._context)
            self._watch()
        connection = connections.take() or await connections.connect()
        connection.start(request, receiver)
        return connection

    async def send_fresh(self, origin: Origin, request: bytes, receiver: Receiver) -> Connection:
        """`send` on a new connection, after a kept one turned out to be closed."""
        connection = await self._origins[origin].connect()
        connection.start(request, receiver)
        return connection

    def open_to(self, origin: Origin) -> int:
        """Connections open to it, used or not."""
        connections = self._origins.get(origin)
        return connections.open if connections is not None else 0

    def close(self) -> None:
        """Close every connection, those in use too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connections in self._origins.values():
            connections.close()
        self._origins.clear()

    def _watch(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connections in self._origins.values():
            connections.sweep(loop.time())
        self._sweeper = loop.call_later(SWEEP, self._sweep)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _plain(exc: OSError) -> str:
    """An OSError in plain words; the event loop's own text repeats the address."""
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    return exc.strerror or str(exc) or type(exc).__name__
