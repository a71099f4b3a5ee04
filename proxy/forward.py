"""From a request to an answer that is ready to be relayed: route, select, encode, send, decode the beginning; and the
rule for trying again.

A second attempt is made only while nothing was sent to the client: on any other replica when no connection could be
made, on one other replica when a generation was turned away with 503 or 429. After the first event there is none.

Not here: the client's side (`relay`), what a dialect means, how bytes travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.call import Call
from proxy.dialects.base import Dialect, EngineKind, Request, ResponseDecoder, StreamDecoder, Usage
from proxy.errors import ApiError, error
from proxy.exchange import Exchange, TooLong
from proxy.headers import RawHeaders, find, for_client
from proxy.metrics import Metrics, Series
from proxy.pool import Backend, Replica, Route, select
from proxy.registry import Registry
from proxy.transport import ConnectFailed, ConnectionLost, Transport, TransportError, UpstreamTimeout

GENERATIONS: Final = frozenset(("chat", "completions", "responses", "messages"))
TURNED_AWAY: Final = frozenset((429, 503))
ERROR_BODY: Final = 1024 * 1024  # bytes of an engine's error that are read


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is complete."""

    body: bytes
    content_type: str
    headers: RawHeaders
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """An answer that has begun: `first` is decoded already, the rest is still in `exchange`. `failed`: that was all,
    and it ends with an error."""

    exchange: Exchange
    decoder: StreamDecoder
    first: bytes
    content_type: str
    headers: RawHeaders
    failed: ApiError | None = None


class Verbatim:
    """A `StreamDecoder` for bodies that nobody here understands: audio, images."""

    done = False
    cut = False
    usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""

    def error(self, exc: ApiError) -> bytes:
        return b""

    def take_pending(self) -> bytes:
        return b""


class Forwarder:
    """Carries requests to engines. It owns nothing: `transport` and `registry` are the application's."""

    def __init__(
        self,
        registry: Registry,
        transport: Transport,
        dialects: Mapping[EngineKind, Dialect],
        metrics: Metrics,
        *,
        max_reply: int,
    ) -> None:
        self._registry = registry
        self._transport = transport
        self._dialects = dialects
        self._metrics = metrics
        self._max_reply = max_reply

    async def open(self, request: Request, route: Route, headers: bytes, call: Call) -> Opened:
        """The answer's beginning, from the first replica that gives one. `headers`: header lines of the client's that
        go along. Raises `ApiError`. The caller closes what it gets; cancelling closes everything."""
        tried: list[Replica] = []
        turned_away = False
        while True:
            replica = select(route.replicas, tried, self._now(), self._registry.turn())
            assert replica is not None  # a route has replicas, and `_again` asks only while some are left
            tried.append(replica)
            call.attempts = len(tried)
            call.backend = replica.backend.name
            try:
                return await self._attempt(request, replica, route.name, headers, call)
            except ConnectFailed as exc:
                failure = _unreachable(replica.backend, exc)
                if call.started or len(tried) == len(route.replicas):
                    raise failure from None
            except ApiError as exc:
                again = exc.status in TURNED_AWAY and request.endpoint in GENERATIONS and not turned_away
                if call.started or not again or len(tried) == len(route.replicas):
                    raise
                turned_away = True

    async def _attempt(self, request: Request, replica: Replica, public: str, headers: bytes, call: Call) -> Opened:
        backend = replica.backend
        dialect = self._dialects[backend.kind or "openai"]
        encoded, decoder = dialect.encode(request, backend.target(replica.model, public))
        head = backend.request_head(encoded.path)
        payload = b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
            head, encoded.content_type.encode(), len(encoded.body), call.id, headers, encoded.body,
        )  # fmt: skip
        await backend.enter()
        opened = Opened(backend, self._metrics.series(request.endpoint, public, backend.name))
        try:
            await self._send(backend, payload, opened.exchange)
            extra: RawHeaders = []
            if encoded.dropped:
                extra.append((b"x-illm-dropped-params", ", ".join(encoded.dropped).encode()))
            opened.answer = await self._begin(request, opened.exchange, decoder, backend, extra)
        except BaseException:
            opened.close()
            raise
        return opened

    async def _send(self, backend: Backend, payload: bytes, exchange: Exchange) -> None:
        """Until the head is there. A kept connection that the engine had closed already is replaced once."""
        try:
            try:
                exchange.bind(await self._transport.send(backend.origin, payload, exchange))
                await exchange.head()
            except ConnectionLost as exc:
                if not exc.stale:
                    raise
                exchange.renew()
                try:
                    exchange.bind(await self._transport.send_fresh(backend.origin, payload, exchange))
                except ConnectFailed:  # it may have died of this very request, which then must not go to another
                    raise exc from None
                await exchange.head()
        except UpstreamTimeout as exc:
            raise error("backend_timeout", f"Backend '{backend.name}' gave {exc}. It may be overloaded.") from None
        except TransportError as exc:
            backend.breaker.strike(self._now())
            if isinstance(exc, ConnectFailed):
                raise
            raise _unreachable(backend, exc) from None
        backend.answered()

    async def _begin(
        self, request: Request, exchange: Exchange, decoder: ResponseDecoder, backend: Backend, extra: RawHeaders
    ) -> Whole | Streaming:
        kind = exchange.content_type
        status = exchange.status
        try:
            if not 200 <= status < 300:
                body = await self._error_body(exchange)
                retry_after = find(exchange.headers, b"retry-after")
                raise decoder.failure(status, kind, body, retry_after.decode("latin-1") if retry_after else None)
            headers = for_client(exchange.headers) + extra
            events = kind.startswith("text/event-stream")
            if events and request.stream:
                return await self._first_event(exchange, decoder.stream(), headers)
            if not events and "json" not in kind and not kind.startswith("text/"):
                return Streaming(
                    exchange, Verbatim(), await exchange.next(), kind or "application/octet-stream", headers
                )
            body = await exchange.read(self._max_reply)
        except TooLong:
            raise error(
                "upstream_invalid_response",
                f"Backend '{backend.name}' answered with more than {self._max_reply} bytes. Raise upstream.max_reply, "
                "or ask for less at a time.",
            ) from None
        except TransportError as exc:
            raise _broken(backend, exc) from None
        reply = decoder.reply(kind, body)
        return Whole(reply.body, reply.content_type, headers, reply.usage)

    async def _first_event(self, exchange: Exchange, decoder: StreamDecoder, headers: RawHeaders) -> Streaming:
        """Nothing reaches the client before an event is understood: if it is an error, it becomes a plain one."""
        first = b""
        failed: ApiError | None = None
        try:
            while not first and not decoder.done:
                piece = await exchange.next()
                first = decoder.feed(piece) if piece else decoder.flush()
                if not piece:
                    break
        except ApiError as exc:
            first = decoder.take_pending()
            if not first:
                raise
            failed = exc
            first += decoder.error(exc)
        return Streaming(exchange, decoder, first, "text/event-stream; charset=utf-8", headers, failed)

    @staticmethod
    async def _error_body(exchange: Exchange) -> bytes:
        try:
            return await exchange.read(ERROR_BODY)
        except TooLong:
            return b""

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class Opened:
    """An answer and what it holds: a place at its backend and perhaps a connection. Close it; twice is harmless."""

    __slots__ = ("_backend", "_series", "answer", "exchange")

    answer: Whole | Streaming

    def __init__(self, backend: Backend, series: Series) -> None:
        self._backend: Backend | None = backend
        self._series = series
        self.exchange = Exchange()
        series.started()

    def broken(self, exc: TransportError) -> ApiError:
        """The engine broke off inside a stream."""
        backend = self._backend
        assert backend is not None
        if isinstance(exc, ConnectionLost):
            backend.breaker.strike(asyncio.get_running_loop().time())
        return _broken(backend, exc)

    def close(self) -> None:
        backend, self._backend = self._backend, None
        self.exchange.close()
        if backend is not None:
            backend.leave()
            self._series.ended()


def _unreachable(backend: Backend, exc: TransportError) -> ApiError:
    return error(
        "backend_unavailable",
        f"Backend '{backend.name}' can't be reached: {exc}. Check that its engine is running and that its base_url "
        "is right.",
    )


def _broken(backend: Backend, exc: TransportError) -> ApiError:
    return error(
        "upstream_incomplete", f"Backend '{backend.name}' broke off: {exc}. Its log says why; trying again may help."
    )
