"""One call to an engine, seen from the reading side: await the head, then read the body whole, piece by piece, or
have each piece handed on the moment it arrives.

It holds at most `HOLD` bytes that nobody has asked for yet, then stops reading from the engine. It knows neither
dialects nor clients.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.connection import Connection, Receiver, TransportError
from proxy.headers import Named, RawHeaders

HOLD: Final = 256 * 1024


class TooLong(Exception):
    """A body that must be held whole is longer than the limit."""


class Consumer:
    """Whom `pump` hands each piece to. (A class and no function: see `connection.Receiver`.)"""

    __slots__ = ()

    def take(self, data: bytes) -> None:
        """A piece, inside the read callback: must not block. Whatever it raises ends the call."""


class Exchange(Receiver):
    """Whoever makes it closes it; closing twice, or after the end, does nothing."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: RawHeaders = []
        self.names: Named = {}  # the same by name
        self._connection: Connection | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._ended = False
        self._failure: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._consumer: Consumer | None = None
        self._crash: BaseException | None = None

    def send(self, request: bytes, connection: Connection) -> None:
        """Carry it out, or once more after a failure, on that connection, which it owns from now on."""
        self._failure = None
        self._connection = connection
        connection.start(request, self)

    # -- transport.Receiver ----------------------------------------------------------------------------------

    def on_head(self, status: int, headers: RawHeaders, names: Named) -> None:
        self.status = status
        self.headers = headers
        self.names = names
        self._wake()

    def on_data(self, data: bytes) -> None:
        if self._consumer is not None:
            try:
                self._consumer.take(data)
            except BaseException as exc:  # noqa: BLE001 - kept, not swallowed: `pump` raises it
                self._crash = exc
                self.finish()
            return
        self._pieces.append(data)
        self._held += len(data)
        if self._held > HOLD and self._waiter is None:
            self.pause()
        self._wake()

    def on_end(self) -> None:
        self._ended = True
        self._connection = None
        self._wake()

    def on_lost(self, exc: TransportError) -> None:
        self._failure = exc
        self._connection = None
        self._wake()

    # -- for the reader --------------------------------------------------------------------------------------

    async def head(self) -> None:
        """Until `status` and `headers` are there. Raises `TransportError`."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    async def next(self) -> bytes:
        """The next piece, b"" at the end of the body. Raises `TransportError`."""
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            self.resume()
            await self._wait()
        pieces, self._pieces, self._held = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises `TransportError`, and `TooLong` above `limit` bytes."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.next():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise TooLong
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pump(self, consumer: Consumer) -> None:
        """Hand every further piece to `consumer` inside the read callback, until the body ends or `finish`.
        Raises `TransportError`. Between two pieces the consumer may `pause` and `resume`."""
        held = await self.next() if self._pieces else b""
        self._consumer = consumer
        try:
            self.resume()  # before the consumer is called: it may pause
            if held:
                consumer.take(held)
            while not self._ended:
                if self._failure is not None:
                    raise self._failure
                await self._wait()
        finally:
            self._consumer = None  # it knows this exchange: a circle, which only the garbage collector would open
        if self._crash is not None:
            raise self._crash

    def finish(self) -> None:
        """The rest of the body is of no interest: end `pump`, close the connection."""
        self._ended = True
        self.close()
        self._wake()

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Give up what is still to come; the engine sees the connection close at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def content_type(self) -> str:
        told = self.names.get(b"content-type", b"").decode("latin-1")
        media_type, sep, rest = told.partition(";")
        return media_type.lower() + sep + rest

    async def _wait(self) -> None:
        connection = self._connection
        loop = connection.loop if connection is not None else asyncio.get_running_loop()
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
