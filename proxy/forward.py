"""From a request to an answer that is ready to be relayed: route, select, encode, send, decode the beginning; and the
rule for trying again.

A second attempt is made only while nothing was sent to the client: on any other replica when no connection could be
made, the engine lacks the ability or its launcher couldn't start it, on one other replica when a generation was turned
away with 503 or 429. After the first event there is none. An engine that a launcher starts is waited for here.

Not here: the client's side (`relay`), what a dialect means, how bytes travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from proxy.answer import Opened, Source, Streaming, Verbatim, Whole, together
from proxy.call import Call
from proxy.connection import ConnectFailed
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
from proxy.exchange import Exchange
from proxy.headers import RawHeaders, for_client
from proxy.line import Line, unreachable
from proxy.metrics import Metrics
from proxy.pool import Gate, Replica, Route, select
from proxy.registry import Registry
from proxy.transport import Transport

Images = Callable[[str], Awaitable[tuple[str, bytes]]]  # URL -> media type, bytes; raises ApiError

GENERATIONS: Final = frozenset(("chat", "completions", "responses", "messages"))
NO_CONTENT: Final = 204
TURNED_AWAY: Final = frozenset((429, 503))
DIED: Final = "backend_unavailable"  # perhaps of this very request, which then must not go to another
# Nothing was done, and the next replica may be another engine.
UNABLE: Final = frozenset(
    (
        "unsupported_endpoint",
        "engine_failed",
        "engine_missing",
        "engine_memory",
        "engine_stopped",
        "launcher_unavailable",
    )
)
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

    async def open(self, request: Request, route: Route, call: Call) -> Opened:
        """The answer's beginning, from the first replica that gives one. Raises `ApiError`. The caller closes what it
        gets; cancelling closes everything."""
        tried: list[Replica] = []
        turned_away = False
        while True:
            replica = self._select(route, tried)
            assert replica is not None  # a route has replicas, and `_again` asks only while some are left
            tried.append(replica)
            call.attempts = len(tried)
            call.backend = replica.backend.name
            try:
                return await self._attempt(request, replica, route.name, call)
            except ConnectFailed as exc:
                failure = unreachable(replica.backend, exc)
                if call.started or len(tried) == len(route.replicas):
                    raise failure from None
            except ApiError as err:
                replica.backend.blot(err)
                busy = err.status in TURNED_AWAY and request.endpoint in GENERATIONS and err.code != DIED
                again = err.code in UNABLE or (busy and not turned_away)
                if call.started or not again or len(tried) == len(route.replicas):
                    raise
                turned_away = turned_away or (busy and err.code not in UNABLE)

    async def _attempt(self, request: Request, replica: Replica, public: str, call: Call) -> Opened:
        gate = replica.backend.gate
        if gate is None:
            if not replica.backend.admit():
                await replica.backend.enter()
            return await self._entered(request, replica, public, call)
        await self._pass(gate, request, replica, public, call)
        try:
            return await self._entered(request, replica, public, call)
        except ConnectFailed:  # its engine ended this moment: its launcher knows what comes next
            await gate.lost()
            await self._pass(gate, request, replica, public, call)
            return await self._entered(request, replica, public, call)

    async def _pass(self, gate: Gate, request: Request, replica: Replica, public: str, call: Call) -> None:
        """Enter once the engine is ready. A stream waits as long as that takes, kept alive; others for so long."""
        backend = replica.backend
        if gate.open:
            await backend.enter()
            return
        self._check_ability(request, replica, public)
        stream = request.stream and request.endpoint in GENERATIONS
        limit = None if stream else self._registry.settings.launcher.wait
        call.waiting = gate.told
        try:
            async with asyncio.timeout(limit):
                await backend.enter()
        except TimeoutError:
            raise error(
                "model_loading", f"The model isn't there after {limit:g} s ({gate.told()}). Try again in a moment."
            ) from None
        finally:
            call.waiting = None

    def _check_ability(self, request: Request, replica: Replica, public: str) -> None:
        """Raises where that kind of engine can't do it at all: none is started for that. The rest is checked when its
        version is known."""
        kind = replica.backend.kind
        if kind is not None:
            try:
                self._dialects[kind].encode(request, replica.backend.target(replica, public))
            except ApiError as exc:
                if exc.code == "unsupported_endpoint":
                    raise

    async def _entered(self, request: Request, replica: Replica, public: str, call: Call) -> Opened:
        """Encode, send, decode the beginning, from a place that was taken already and is given back by the answer's
        `close`."""
        backend = replica.backend
        opened = Opened(backend, self._metrics.series(request.endpoint, call.model, backend.name))
        own = b"x-request-id: %b\r\n%b" % (call.id, call.passing)
        line = Line(self._transport, backend, opened, own, self._max_reply)
        try:
            steps = self._dialects[backend.kind or "openai"].encode(request, backend.target(replica, public))
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
            await line.get(step.path, exchange)
        else:
            await line.post(Encoded(step.path, step.body), exchange)
        return await line.answered(exchange)

    async def _single(self, request: Request, plan: Plan, line: Line) -> Whole | Streaming:
        exchange = line.opened.exchange()
        await line.post(plan.calls[0], exchange)
        kind = exchange.content_type
        ok = 200 <= exchange.status < 300
        if ok and request.stream and kind.startswith(STREAMED):
            headers = _passing(exchange, plan)
            source = await line.first_event(exchange, plan.decoder.streams()[0], [])
            return Streaming((source,), CONTENT_TYPE, headers)
        if ok and request.endpoint not in GENERATIONS and "json" not in kind and not kind.startswith("text/"):
            first = await line.piece(exchange)
            if not first and (not kind or exchange.status == NO_CONTENT):
                raise _no_answer(line, exchange)
            kind = kind or "application/octet-stream"
            encoded = exchange.names.get(b"content-encoding")  # although none was asked for
            headers = [(b"content-encoding", encoded)] if encoded is not None else []
            return Streaming((Source(exchange, Verbatim(), [first]),), kind, _passing(exchange, plan) + headers)
        answer = await line.answered(exchange)
        if not ok:
            raise plan.decoder.failure(answer)
        if exchange.status == NO_CONTENT:
            raise _no_answer(line, exchange)
        reply = plan.decoder.reply((answer,))
        return Whole(reply.body, reply.content_type, _passing(exchange, plan), reply.usage)

    async def _several(self, plan: Plan, line: Line) -> Whole:
        """A fan-out: all calls at once, the first failure ends the others."""

        async def one(call: Encoded) -> Answered:
            exchange = line.opened.exchange()
            await line.post(call, exchange)
            answer = await line.answered(exchange)
            if not 200 <= answer.status < 300:
                raise plan.decoder.failure(answer)
            return answer

        reply = plan.decoder.reply(await together(one(call) for call in plan.calls))
        return Whole(reply.body, reply.content_type, _dropped(plan), reply.usage)

    async def _several_streams(self, plan: Plan, line: Line) -> Streaming:
        """A fan-out of streams: begins with the first event of any of them."""

        async def one(call: Encoded, exchange: Exchange, decoder: StreamDecoder) -> Source:
            await line.post(call, exchange)
            if not 200 <= exchange.status < 300:
                raise plan.decoder.failure(await line.answered(exchange))
            return await line.first_event(exchange, decoder, decoded)

        decoded: list[bytes] = []
        sources: list[Source] = []
        for encoded, decoder in zip(plan.calls, plan.decoder.streams(), strict=True):
            exchange = line.opened.exchange()
            opening = asyncio.create_task(one(encoded, exchange, decoder))
            line.opened.tasks.append(opening)
            sources.append(Source(exchange, decoder, decoded, opening=opening))
        done, _ = await asyncio.wait(line.opened.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return Streaming(tuple(sources), CONTENT_TYPE, _dropped(plan))

    async def _fetch(self, url: str) -> Answered:
        media_type, data = await self._images(url)
        return Answered(200, media_type, data)

    def _select(self, route: Route, tried: list[Replica]) -> Replica | None:
        if len(route.replicas) == 1 and not tried:
            return route.replicas[0]
        return select(route.replicas, tried, asyncio.get_running_loop().time(), self._registry.turn())


def _no_answer(line: Line, exchange: Exchange) -> ApiError:
    """No endpoint here has an answer that is nothing: a client would look for what it has asked for in it."""
    return error(
        "upstream_invalid_response",
        f"Backend '{line.backend.name}' answered {exchange.status} with nothing in it. Check its log, and that its "
        "base_url is right.",
    )


def _passing(exchange: Exchange, plan: Plan) -> RawHeaders:
    return for_client(exchange.headers, exchange.names) + _dropped(plan)


def _dropped(plan: Plan) -> RawHeaders:
    return [(b"x-illm-dropped-params", ", ".join(plan.dropped).encode())] if plan.dropped else []
