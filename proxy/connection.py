"""One connection to an engine: an `asyncio.Protocol` over llhttp that carries one call at a time.

What the engine sends reaches the `Receiver` inside the read callback, with no task, queue or timer of its own for each
request (docs/data-path.md tells what that saves). Here are also the ways in which a call can break. Which connection
carries which call, and for how long it is kept, is `transport`'s.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import httptools

from proxy.chunks import whole_chunks
from proxy.headers import Named, RawHeaders, named


class TransportError(Exception):
    """The call to an engine broke. `reached` tells whether the engine may have begun to work on it."""

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


class ConnectFailed(TransportError):
    """No connection: nothing was sent. `reason`: the system's, where it told one."""

    def __init__(self, message: str, reason: OSError | None = None) -> None:
        super().__init__(message, reached=False)
        self.reason = reason


class ConnectionLost(TransportError):
    """The engine closed, reset or garbled the connection before its answer was complete.

    `stale`: it was a kept connection that broke at once with not one byte of an answer, so the engine had most likely
    closed it before the request arrived.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message, reached=True)
        self.stale = stale


class UpstreamTimeout(TransportError):
    """The engine was silent for longer than the limit."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=True)


STALE: Final = 1.0  # seconds: an engine that breaks a kept connection later than that had the request


class SurplusAnswer(Exception):
    """Two answers in one read to one request; stops the parser between them."""


class Receiver:
    """Who is told what comes back. Called from the event loop's read callback: none of these may block. (A class and
    no protocol: compiled code finds the methods of its own classes by their place, not by their name.)"""

    __slots__ = ()

    def on_head(self, status: int, headers: RawHeaders, names: Named) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_lost(self, exc: TransportError) -> None: ...


class Owner:
    """Who keeps connections."""

    __slots__ = ()

    loop: asyncio.AbstractEventLoop
    active: set[Connection]

    def keep(self, connection: Connection) -> None: ...

    def discard(self, connection: Connection) -> None: ...


class Connection:
    """An `asyncio.Protocol` (not by inheritance, as `ClientConnection`); carries one call at a time. Owned by its
    `Owner`, lent out between `start` and the end."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.loop = owner.loop
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._headers: RawHeaders = []
        self._pieces: list[bytes] = []
        self._complete = False
        self._keep = False
        self._framed = True  # the body has a length or chunks; else it ends where the connection does
        self._chunked = False
        self._inside = False  # the parser stands inside a chunk or its size line
        self._answered = False  # any byte of this answer came
        self._uses = 0
        self._paused = False
        self.head_seen = False
        self.touched = 0.0  # loop time when the last call began
        self.heard = False  # something came since the last look at the time limits

    # -- for whoever borrows it ------------------------------------------------------------------------------

    def start(self, request: bytes, receiver: Receiver) -> None:
        """Send one whole request; the answer goes to `receiver`. Doesn't block: the kernel and the transport's
        buffer take it (the body is in memory already and bounded by the body limit)."""
        assert self._transport is not None
        self._receiver = receiver
        self._uses += 1
        self._answered = self._complete = self.head_seen = self._chunked = self.heard = False
        self._headers = []  # the last answer's trailers may be left in it
        self.touched = self.loop.time()
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
            self.heard = True
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
        self.heard = self._answered = True
        if self._chunked and not self._inside:  # as streams mostly come: in whole chunks, which need no parser
            body, size = whole_chunks(data)
            if size:
                self._receiver.on_data(body)
                if size == len(data) or self._receiver is None:
                    return
                data = data[size:]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self._complete:
                self._fail(ConnectionLost(f"what it answered is not HTTP ({exc})"))
                return
            self._keep = False  # it said more than it was asked: the answer stands, the connection doesn't
        if not data.endswith(b"\r\n"):
            self._inside = True
        self._deliver()

    def pause_writing(self) -> None:
        """A body is in memory already, wherever it waits."""

    def resume_writing(self) -> None: ...

    def eof_received(self) -> None:
        return None  # close: the parser decides in connection_lost whether that was the end of the body

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._parser = None  # the parser refers back to this
        receiver = self._receiver
        self._forget()
        if receiver is None:
            return
        self._receiver = None
        if self.head_seen and exc is None and not self._framed:
            receiver.on_end()
        elif self._answered:
            receiver.on_lost(ConnectionLost("it closed the connection before the answer was complete"))
        else:
            stale = self.reused and self.loop.time() - self.touched < STALE  # nothing came since
            receiver.on_lost(ConnectionLost("it closed the connection without an answer", stale=stale))

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
        names = named(headers)
        encoding = names.get(b"transfer-encoding")
        self._framed = encoding is not None or b"content-length" in names
        self._chunked, self._inside = encoding == b"chunked", False
        if self._receiver is not None:
            self._receiver.on_head(status, headers, names)

    def on_chunk_header(self) -> None:
        self._inside = True

    def on_chunk_complete(self) -> None:
        self._inside = False

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._complete = self.head_seen

    # -- inside ----------------------------------------------------------------------------------------------

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
