"""From a request to an answer that is ready to be relayed: route, select, encode, send, decode the beginning; and the
rule for trying again.

A second attempt is made only while nothing was sent to the client: on any other replica when no connection could be
made or the engine lacks the ability, on one other replica when a generation was turned away with 503 or 429. After
the first event there is none.

Not here: the client's side (`relay`), what a dialect means, how bytes travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.answer import Opened, Source, Streaming, Verbatim, Whole, broken, together
from proxy.call import Call
from proxy.connection import ConnectFailed, ConnectionLost, TransportError, UpstreamTimeout
from proxy.dialects.base import (
    Answered,
    Ask,
    Dialect,
    Encoded,
    EngineKind,
    Fetch,
    Learn,
    Plan,
    Reply,
    Request,
    Steps,
    StreamDecoder,
)
from proxy.errors import ApiError, error
from proxy.events import CONTENT_TYPE
from proxy.exchange import Exchange, TooLong
from proxy.headers import RawHeaders, find, for_client
from proxy.metrics import Metrics
from proxy.pool import Backend, Replica, Route, select
from proxy.registry import Registry
from proxy.transport import Transport

Images = Callable[[str], Awaitable[tuple[str, bytes]]]  # URL -> media type, bytes; raises ApiError

GENERATIONS: Final = frozenset(("chat", "completions", "responses", "messages"))
TURNED_AWAY: Final = frozenset((429, 503))
DIED: Final = "backend_unavailable"  # perhaps of this very request, which then must not go to another
UNABLE: Final = "unsupported_endpoint"  # nothing was done, and the next replica may be another engine
ERROR_BODY: Final = 1024 * 1024  # bytes of an engine's error that are read
STREAMED: Final = ("text/event-stream", "application/x-ndjson")
_NOTED: Final = Answered(200, "", b"")


class Forwarder:
    """Carries requests to engines. It owns nothing: `transport` and `registry` are the application's."""

    def __init__(
        self,
        registry: Registry,
        transport: Transport,
        dialects: Mapping[EngineKind, Dialect],
        metrics: Metrics,
        images: Images,
        *,
        max_reply: int,
    ) -> None:
        self._registry = registry
        self._transport = transport
        self._dialects = dialects
        self._metrics = metrics
        self._images = images
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
                replica.backend.blot(exc)
                busy = exc.status in TURNED_AWAY and request.endpoint in GENERATIONS and exc.code != DIED
                again = exc.code == UNABLE or (busy and not turned_away)
                if call.started or not again or len(tried) == len(route.replicas):
                    raise
                turned_away = turned_away or busy

    async def _attempt(self, request: Request, replica: Replica, public: str, headers: bytes, call: Call) -> Opened:
        backend = replica.backend
        steps = self._dialects[backend.kind or "openai"].encode(request, backend.target(replica, public))
        await backend.enter()
        opened = Opened(backend, self._metrics.series(request.endpoint, call.model, backend.name))
        line = Line(backend, b"x-request-id: %b\r\n%b" % (call.id, headers), opened)
        try:
            plan = steps if isinstance(steps, Plan) else await self._walk(steps, line)
            if isinstance(plan, Reply):
                opened.answer = Whole(plan.body, plan.content_type, [], plan.usage)
            elif len(plan.calls) == 1:
                opened.answer = await self._single(request, plan, line)
            elif request.stream:
                opened.answer = await self._several_streams(plan, line)
            else:
                opened.answer = await self._several(plan, line)
        except BaseException:
            opened.close()
            raise
        return opened

    async def _walk(self, steps: Steps, line: Line) -> Plan | Reply:
        """Carry out what a dialect needs before it knows what to send."""
        answer = Answered(0, "", b"")
        try:
            while True:
                step = steps.send(answer) if answer.status else next(steps)
                if isinstance(step, Learn):
                    line.backend.facts[step.name] = step.value
                    answer = _NOTED
                elif isinstance(step, Fetch):
                    answer = await self._fetch(step.url)
                else:
                    answer = await self._ask(step, line)
        except StopIteration as stop:
            plan: Plan | Reply = stop.value
            return plan
        finally:
            steps.close()

    async def _ask(self, step: Ask, line: Line) -> Answered:
        exchange = line.opened.exchange()
        if step.body is None:
            await self._send(line.backend, line.get(step.path), exchange)
        else:
            await self._send(line.backend, line.post(Encoded(step.path, step.body)), exchange)
        return await self._answered(exchange, line.backend)

    async def _single(self, request: Request, plan: Plan, line: Line) -> Whole | Streaming:
        exchange = line.opened.exchange()
        await self._send(line.backend, line.post(plan.calls[0]), exchange)
        kind = exchange.content_type
        ok = 200 <= exchange.status < 300
        if ok and request.stream and kind.startswith(STREAMED):
            headers = _passing(exchange, plan)
            source = await self._first_event(exchange, plan.decoder.streams()[0], line.backend, [])
            return Streaming((source,), CONTENT_TYPE, headers)
        if ok and request.endpoint not in GENERATIONS and "json" not in kind and not kind.startswith("text/"):
            first = await self._piece(exchange, line.backend)
            kind = kind or "application/octet-stream"
            encoded = find(exchange.headers, b"content-encoding")  # although none was asked for
            headers = [(b"content-encoding", encoded)] if encoded is not None else []
            return Streaming((Source(exchange, Verbatim(), [first]),), kind, _passing(exchange, plan) + headers)
        answer = await self._answered(exchange, line.backend)
        if not ok:
            raise plan.decoder.failure(answer)
        reply = plan.decoder.reply((answer,))
        return Whole(reply.body, reply.content_type, _passing(exchange, plan), reply.usage)

    async def _several(self, plan: Plan, line: Line) -> Whole:
        """A fan-out: all calls at once, the first failure ends the others."""

        async def one(call: Encoded) -> Answered:
            exchange = line.opened.exchange()
            await self._send(line.backend, line.post(call), exchange)
            answer = await self._answered(exchange, line.backend)
            if not 200 <= answer.status < 300:
                raise plan.decoder.failure(answer)
            return answer

        reply = plan.decoder.reply(await together(one(call) for call in plan.calls))
        return Whole(reply.body, reply.content_type, _dropped(plan), reply.usage)

    async def _several_streams(self, plan: Plan, line: Line) -> Streaming:
        """A fan-out of streams: begins with the first event of any of them."""

        async def one(call: Encoded, exchange: Exchange, decoder: StreamDecoder) -> Source:
            await self._send(line.backend, line.post(call), exchange)
            if not 200 <= exchange.status < 300:
                raise plan.decoder.failure(await self._answered(exchange, line.backend))
            return await self._first_event(exchange, decoder, line.backend, decoded)

        decoded: list[bytes] = []
        sources = []
        for encoded, decoder in zip(plan.calls, plan.decoder.streams(), strict=True):
            exchange = line.opened.exchange()
            opening = asyncio.create_task(one(encoded, exchange, decoder))
            line.opened.tasks.append(opening)
            sources.append(Source(exchange, decoder, decoded, opening=opening))
        done, _ = await asyncio.wait(line.opened.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return Streaming(tuple(sources), CONTENT_TYPE, _dropped(plan))

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

    async def _answered(self, exchange: Exchange, backend: Backend) -> Answered:
        """The whole answer. What is too long of an error is left out, what is too long of a reply is an error."""
        ok = 200 <= exchange.status < 300
        try:
            body = await exchange.read(self._max_reply if ok else ERROR_BODY)
        except TooLong:
            exchange.close()
            if ok:
                raise error(
                    "upstream_invalid_response",
                    f"Backend '{backend.name}' answered with more than {self._max_reply} bytes. Raise "
                    "upstream.max_reply, or ask for less at a time.",
                ) from None
            body = b""
        except TransportError as exc:
            raise broken(backend, exc) from None
        return Answered(exchange.status, exchange.content_type, body, exchange.headers)

    async def _first_event(
        self, exchange: Exchange, decoder: StreamDecoder, backend: Backend, decoded: list[bytes]
    ) -> Source:
        """Nothing reaches the client before an event is understood: if it is an error, it becomes a plain one."""
        failed: ApiError | None = None
        out = b""
        while not out and not decoder.done:
            piece = await self._piece(exchange, backend)
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

    @staticmethod
    async def _piece(exchange: Exchange, backend: Backend) -> bytes:
        try:
            return await exchange.next()
        except TransportError as exc:
            raise broken(backend, exc) from None

    async def _fetch(self, url: str) -> Answered:
        media_type, data = await self._images(url)
        return Answered(200, media_type, data)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class Line:
    """What all upstream calls of one request share. `headers`: header lines that go along with each."""

    backend: Backend
    headers: bytes
    opened: Opened

    def post(self, call: Encoded) -> bytes:
        return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
            self.backend.request_head("POST", call.path),
            call.content_type.encode(),
            len(call.body),
            self.headers,
            call.body,
        )

    def get(self, path: str) -> bytes:
        return b"%b%b\r\n" % (self.backend.request_head("GET", path), self.headers)


def _passing(exchange: Exchange, plan: Plan) -> RawHeaders:
    return for_client(exchange.headers) + _dropped(plan)


def _dropped(plan: Plan) -> RawHeaders:
    return [(b"x-illm-dropped-params", ", ".join(plan.dropped).encode())] if plan.dropped else []


def _unreachable(backend: Backend, exc: TransportError) -> ApiError:
    return error(
        "backend_unavailable",
        f"Backend '{backend.name}' can't be reached: {exc}. Check that its engine is running and that its base_url "
        "is right.",
    )
