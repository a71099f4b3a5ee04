"""One request's line to the backend that it was given: send a call, read what comes back, and turn what breaks into
errors.

Not here: which backend that is and whether another is tried (`forward`), what the bytes mean (dialects), the client.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.answer import Opened, Source, broken
from proxy.connection import ConnectFailed, ConnectionLost, TransportError, UpstreamTimeout
from proxy.dialects.base import Answered, Encoded, StreamDecoder
from proxy.errors import ApiError, error
from proxy.exchange import Exchange, TooLong
from proxy.pool import Backend
from proxy.transport import Transport

ERROR_BODY: Final = 1024 * 1024  # bytes of an engine's error that are read


class Line:
    """What all upstream calls of one request share. `headers`: header lines that go along with each."""

    __slots__ = ("backend", "headers", "max_reply", "opened", "transport")

    def __init__(self, transport: Transport, backend: Backend, opened: Opened, headers: bytes, max_reply: int) -> None:
        self.transport = transport
        self.backend = backend
        self.opened = opened
        self.headers = headers
        self.max_reply = max_reply

    async def post(self, call: Encoded, exchange: Exchange) -> None:
        """Send it; returns when the head of the answer is there. Raises `ConnectFailed`, so that another replica may be
        tried, and `ApiError` for everything else."""
        head = self.backend.request_head("POST", call.path)
        kind, length = call.content_type.encode(), len(call.body)
        told = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (head, kind, length, self.headers, call.body)
        await self._send(told, exchange)

    async def get(self, path: str, exchange: Exchange) -> None:
        """As `post`."""
        await self._send(b"%b%b\r\n" % (self.backend.request_head("GET", path), self.headers), exchange)

    async def answered(self, exchange: Exchange) -> Answered:
        """The whole answer. What is too long of an error is left out, what is too long of a reply is an error."""
        ok = 200 <= exchange.status < 300
        try:
            body = await exchange.read(self.max_reply if ok else ERROR_BODY)
        except TooLong:
            exchange.close()
            if ok:
                raise error(
                    "upstream_invalid_response",
                    f"Backend '{self.backend.name}' answered with more than {self.max_reply} bytes. Raise "
                    "upstream.max_reply, or ask for less at a time.",
                ) from None
            body = b""
        except TransportError as exc:
            raise broken(self.backend, exc) from None
        return Answered(exchange.status, exchange.content_type, body, exchange.headers)

    async def first_event(self, exchange: Exchange, decoder: StreamDecoder, decoded: list[bytes]) -> Source:
        """Nothing reaches the client before an event is understood: if it is an error, it becomes a plain one."""
        failed: ApiError | None = None
        out = b""
        while not out and not decoder.done:
            piece = await self.piece(exchange)
            try:
                out = decoder.feed(piece) if piece else decoder.flush()
            except ApiError as exc:
                out, failed = decoder.take_pending(), exc
                if not out:
                    raise
            decoded.append(out)
            if not piece:
                break
        return Source(exchange, decoder, decoded, failed)

    async def piece(self, exchange: Exchange) -> bytes:
        """The next piece of the answer, empty at its end."""
        try:
            return await exchange.next()
        except TransportError as exc:
            raise broken(self.backend, exc) from None

    async def _send(self, payload: bytes, exchange: Exchange) -> None:
        """A kept connection that the engine had closed already is replaced once."""
        backend, transport = self.backend, self.transport
        origin = backend.origin
        try:
            connection = transport.kept(origin) or await transport.connect(origin)
            exchange.send(payload, connection)
            try:
                await exchange.head()
            except ConnectionLost as lost:
                if not lost.stale:
                    raise
                try:
                    connection = await transport.connect(origin)
                except ConnectFailed:  # it may have died of this very request, which then must not go to another
                    raise lost from None
                exchange.send(payload, connection)
                await exchange.head()
        except UpstreamTimeout as late:
            raise error("backend_timeout", f"Backend '{backend.name}' gave {late}. It may be overloaded.") from None
        except TransportError as exc:
            backend.breaker.strike(asyncio.get_running_loop().time())
            if isinstance(exc, ConnectFailed):
                raise
            raise unreachable(backend, exc) from None
        backend.answered()


def unreachable(backend: Backend, exc: TransportError) -> ApiError:
    """No connection, or none that held until the answer's head."""
    return error(
        "backend_unavailable",
        f"Backend '{backend.name}' can't be reached: {exc}. Check that its engine is running and that its base_url "
        "is right.",
    )
