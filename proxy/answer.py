"""What `forward` opens and `relay` sees through: an answer, whole or begun, and what it holds until it is closed.

Types, and the little that both sides do with them; written out, as in `dialects.base`. No routing, no dialects,
nothing of the client's side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from proxy.connection import ConnectionLost, TransportError
from proxy.dialects.base import StreamDecoder, Usage
from proxy.errors import ApiError, error
from proxy.exchange import Exchange
from proxy.headers import RawHeaders
from proxy.metrics import Series
from proxy.pool import Backend

T = TypeVar("T")


class Whole:
    """An answer that is complete."""

    __slots__ = ("body", "content_type", "headers", "usage")

    def __init__(self, body: bytes, content_type: str, headers: RawHeaders, usage: Usage | None = None) -> None:
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.usage = usage


class Source:
    """One engine stream: its beginning is in `decoded` (or will be, by `opening`), the rest is still in `exchange`.
    The sources of a fan-out share `decoded`, so that what their decoders gave is written in the order in which they
    gave it. `failed`: nothing follows but this error."""

    __slots__ = ("decoded", "decoder", "exchange", "failed", "opening")

    def __init__(
        self,
        exchange: Exchange,
        decoder: StreamDecoder,
        decoded: list[bytes],
        failed: ApiError | None = None,
        opening: asyncio.Task[Source] | None = None,
    ) -> None:
        self.exchange = exchange
        self.decoder = decoder
        self.decoded = decoded
        self.failed = failed
        self.opening = opening


class Streaming:
    """An answer that has begun, from one engine stream or, for a fan-out, several."""

    __slots__ = ("content_type", "headers", "sources")

    def __init__(self, sources: tuple[Source, ...], content_type: str, headers: RawHeaders) -> None:
        self.sources = sources
        self.content_type = content_type
        self.headers = headers


class Verbatim(StreamDecoder):
    """Of bodies that nobody here understands: audio, images."""

    def __init__(self) -> None:
        self.done = self.cut = False
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""

    def error(self, exc: ApiError) -> bytes:
        return b""

    def take_pending(self) -> bytes:
        return b""


class Opened:
    """An answer and what it holds: a place at its backend, connections, perhaps tasks. Close it; twice is harmless."""

    __slots__ = ("_backend", "_exchanges", "_series", "answer", "tasks")

    answer: Whole | Streaming

    def __init__(self, backend: Backend, series: Series) -> None:
        self._backend: Backend | None = backend
        self._series = series
        self._exchanges: list[Exchange] = []
        self.tasks: list[asyncio.Task[Source]] = []
        series.started()

    def exchange(self) -> Exchange:
        """One more, closed with this."""
        exchange = Exchange()
        self._exchanges.append(exchange)
        return exchange

    def broken(self, exc: TransportError) -> ApiError:
        """The engine broke off inside a stream."""
        assert self._backend is not None
        return broken(self._backend, exc)

    def blot(self, exc: ApiError) -> None:
        """An engine's error from inside a stream, without the backend's key."""
        if self._backend is not None:
            self._backend.blot(exc)

    def close(self) -> None:
        backend, self._backend = self._backend, None
        for task in self.tasks:
            task.cancel()
            if task.done() and not task.cancelled():
                task.exception()  # one failure was told; the others are known, not forgotten
        for exchange in self._exchanges:
            exchange.close()
        if backend is not None:
            backend.leave()
            self._series.ended()


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first failure cancels the others and is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def broken(backend: Backend, exc: TransportError) -> ApiError:
    """The error for an engine that broke off after its answer had begun; a strike, unless it was only slow."""
    if isinstance(exc, ConnectionLost):
        backend.breaker.strike(asyncio.get_running_loop().time())
    return error(
        "upstream_incomplete", f"Backend '{backend.name}' broke off: {exc}. Its log says why; trying again may help."
    )
