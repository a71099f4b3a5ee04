"""HTTP/1.1 from a client, as heads and bodies: by llhttp, and without it where a head comes again.

Sans-IO: bytes go in as they were read, and the `Listener` hears what they are within the same call. It bounds what a
client may have it hold of a head. Not here: sockets, the order of answers, and what becomes of a body
(`client_connection`).
"""

from __future__ import annotations

from typing import Any, Final

import httptools

from proxy.client_head import Head, Heads, Target

MAX_HEAD: Final = 64 * 1024  # bytes of a request's head, of its trailers, or between two pieces of its body
MAX_HEADERS: Final = 256  # and as many trailers
TOO_LARGE: Final = "The request's headers are too large."
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))


class NotHttp(Exception):
    """What came is no HTTP/1.1 request, or has too large a head; the text is for its sender. Nothing can follow it."""


class TooManyHeaders(Exception):
    """Stops llhttp."""


class Listener:
    """Who hears of requests, one after the other. (A class and no protocol, as `connection.Receiver`.)"""

    __slots__ = ()

    def on_head(self, head: Head) -> None:
        """A request begins."""

    def on_data(self, body: bytes) -> None:
        """A piece of its body."""

    def on_end(self) -> None:
        """It is complete."""


class ClientParser:
    """Of one connection. `heads`: those that other connections have had."""

    def __init__(self, listener: Listener, heads: Heads | None) -> None:
        self._listener = listener
        self._known = heads
        self._llhttp: Any = None  # where it has no use it isn't: most connections begin with a head that others had
        self._last: Head | None = None  # which may come again
        self._heads = 0  # that llhttp has parsed
        self._between = True  # llhttp stands between two requests
        self._left = 0  # bytes that are still to come of the body behind a repeated head, which llhttp never sees
        self._url = b""
        self._target: Target | None = None  # of the last head: mostly the same again
        self._headers: list[tuple[bytes, bytes]] = []
        self._size = 0  # bytes read since anything was complete: of a head, of trailers
        self._stopped = False  # llhttp, behind a head that asks for another protocol
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Read on; a head that was sent before isn't parsed, nor the body behind it. Raises `NotHttp`."""
        while data and not self._ended:
            if self._left:
                data = self._rest_of_body(data)
                continue
            size = self._again(data) if self._between else 0
            if not size:
                self._parse(data)
                return
            assert self._last is not None
            self._llhttp = None
            head = self._last = self._last.repeated(data)
            self._listener.on_head(head)
            self._left = head.length
            if not self._left:
                self._listener.on_end()
            data = data[size:]

    def end(self) -> None:
        """Whatever still comes says nothing."""
        self._ended = True

    def close(self) -> None:
        """Nothing comes any more. llhttp and this refer to each other: only so are both freed at once."""
        self._ended = True
        self._llhttp = None

    # -- without llhttp --------------------------------------------------------------------------------------

    def _again(self, data: bytes) -> int:
        """How many bytes of `data` are a head that is known, which `_last` is then; 0: none."""
        size = self._last.again(data) if self._last is not None else 0
        if not size and self._known is not None:
            found = self._known.find(data)
            if found is not None:
                self._last = found
                size = found.again(data)
        return size

    def _rest_of_body(self, data: bytes) -> bytes:
        """What is behind it."""
        body = data if len(data) <= self._left else data[: self._left]
        self._left -= len(body)
        self._listener.on_data(body)
        if not self._left:
            self._listener.on_end()
        return data[len(body) :]

    # -- with it ---------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        if self._llhttp is None:
            self._llhttp = httptools.HttpRequestParser(self)
        begun, first, heads = self._between, data, self._heads
        self._size += len(data)
        while True:
            try:
                self._llhttp.feed_data(data)
                break
            except httptools.HttpParserUpgrade as stop:
                data = self._framing() + data[stop.args[0] :]
            except httptools.HttpParserError as exc:
                many = isinstance(exc.__context__, TooManyHeaders)
                raise NotHttp(TOO_LARGE if many else f"This is not an HTTP/1.1 request ({exc}).") from None
        if self._size > MAX_HEAD:
            raise NotHttp(TOO_LARGE)
        if begun and self._heads == heads + 1 and self._last is not None:  # the only one, from its first byte on
            self._last.keep(first[: first.find(b"\r\n\r\n") + 4])
            if self._known is not None and not heads:  # further ones may differ in each request: an id, a trace
                self._known.keep(self._last)

    def _framing(self) -> bytes:
        """What another llhttp is told first, so that it reads on behind a head at which the last one stopped: that
        request is served as if it hadn't asked for another protocol."""
        assert self._last is not None
        self._llhttp = httptools.HttpRequestParser(self)
        lines = [b"%b: %b\r\n" % pair for pair in self._last.headers if pair[0] in _FRAMING]
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines)

    def on_message_begin(self) -> None:
        self._between = False
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) == MAX_HEADERS:
            raise TooManyHeaders
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._size = 0
        if self._stopped:  # the head that only frames the body
            self._stopped = False
            return
        llhttp = self._llhttp
        self._stopped = llhttp.should_upgrade()
        version: str = llhttp.get_http_version()
        if self._target is None or self._target.url != self._url:
            self._target = Target(self._url)
        method: str = llhttp.get_method().decode("ascii")
        keep_alive: bool = version != "1.0" and llhttp.should_keep_alive()
        self._last = Head(method, self._target, version, self._headers, keep_alive)
        self._headers = []  # for the trailers, which are read and left at that
        self._heads += 1
        self._listener.on_head(self._last)

    def on_body(self, body: bytes) -> None:
        self._size = 0
        self._listener.on_data(body)

    def on_message_complete(self) -> None:
        self._size = 0
        if not self._stopped:  # else its body wasn't looked for
            self._between = True
            self._listener.on_end()
