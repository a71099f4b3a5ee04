"""The client's side of a call: it writes the answer, notices that the client left, keeps a silent stream alive, and
puts errors where a client can see them.

The whole call is raced against the client's disconnect, reading the prompt included. Pieces are written inside the
upstream's read callback; where the server's buffer is full the upstream is not read until it has drained. A stream
that has begun ends with its end marker or with an error inside it, never with silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any, Final

from proxy.answer import Opened, Source, Whole, together
from proxy.call import CLIENT_LEFT, Call, clock
from proxy.connection import TransportError
from proxy.dialects.base import Endpoint
from proxy.errors import ApiError, error
from proxy.events import CONTENT_TYPE, DONE, KEEP_ALIVE, comment, error_events
from proxy.exchange import Exchange
from proxy.headers import RawHeaders
from proxy.wire import dump_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LINGER: Final = 1.0  # seconds that an engine has for ending its answer after the end marker, to keep its connection
STREAM_HEADERS: Final[RawHeaders] = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
STREAM_OWN: Final = frozenset(name for name, _ in STREAM_HEADERS)


class Client:
    """Writes one response. `head`, `write` and `finish` are for streams, `respond` for everything else."""

    def __init__(self, call: Call, send: Send) -> None:
        self.call = call
        self.exchanges: tuple[Exchange, ...] = ()  # paused while the client is slow
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._blocked: asyncio.Task[None] | None = None
        self._backlog: list[Message] = []
        self._ending = False
        self.wrote = self._loop.time()

    async def respond(self, status: int, content_type: str, body: bytes, headers: RawHeaders) -> None:
        """A whole response; waits while the client is slow."""
        call = self.call
        call.status = status
        call.started = self._ending = True
        call.first_byte = clock() if status < 400 else None
        call.bytes_out = len(body)
        head = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": head + headers + call.headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, exc: ApiError) -> None:
        """A plain error response."""
        self.call.failed(exc)
        headers = [(name.encode(), value.encode()) for name, value in exc.headers]
        await self.respond(exc.status, "application/json", dump_error(exc), headers)

    def head(self, content_type: str, headers: RawHeaders) -> None:
        """Begin a stream with status 200."""
        self.call.status = 200
        self.call.started = True
        passing = [pair for pair in headers if pair[0] not in STREAM_OWN]
        head = [(b"content-type", content_type.encode()), *STREAM_HEADERS, *passing, *self.call.headers]
        self._push({"type": "http.response.start", "status": 200, "headers": head})

    def write(self, data: bytes) -> None:
        """Part of a stream. Never waits: while the client is slow the exchange is paused, so at most what was read
        already is held here."""
        self.wrote = self._loop.time()
        self.call.bytes_out += len(data)
        self._push({"type": "http.response.body", "body": data, "more_body": True})

    def answer(self, data: bytes) -> None:
        """`write` of what an engine said."""
        if self.call.first_byte is None:
            self.call.first_byte = clock()
        self.write(data)

    async def finish(self) -> None:
        """End a stream, after all that was written."""
        self._ending = True
        if self._blocked is not None:
            await self._blocked
        await self._send({"type": "http.response.body", "body": b""})

    @property
    def open(self) -> bool:
        """May something be written that isn't the answer? Not behind its end, nor to a client that doesn't read."""
        return self._blocked is None and not self._ending

    def close(self) -> None:
        """Nothing more will be written."""
        if self._blocked is not None:
            self._blocked.cancel()

    def _push(self, message: Message) -> None:
        """Run the server's `send` here and now; it waits for nothing but a client that reads too slowly."""
        if self._blocked is not None:
            self._backlog.append(message)
            self._hold()
            return
        sending = self._send(message)
        assert isinstance(sending, Coroutine)
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        self._hold()
        self._blocked = self._loop.create_task(self._unblock(Suspended(sending, waits_for)))

    def _hold(self) -> None:
        for exchange in self.exchanges:
            exchange.pause()

    async def _unblock(self, sending: Suspended) -> None:
        await sending
        while self._backlog:
            await self._send(self._backlog.pop(0))
        self._blocked = None
        for exchange in self.exchanges:
            exchange.resume()


class Suspended:
    """A coroutine that was started by hand and had to wait: await it to see it through in a task."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
            yield from self._coroutine.__await__()
        finally:
            self._coroutine.close()


class Disconnect:
    """Calls back once, when the client is gone. Waits on `receive` without a task of its own for each request: the
    coroutine is stepped by the future that it waits for."""

    def __init__(self, receive: Receive, callback: Callable[[], object]) -> None:
        self.fired = False
        self._closed = False
        self._callback = callback
        self._receive = receive
        self._waits_for: asyncio.Future[Any] | None = None
        self._listen()

    def close(self) -> None:
        """Stop listening."""
        self._closed = True  # a step may be on its way already
        if self._waits_for is not None:
            self._waits_for.remove_done_callback(self._step)
            self._waits_for = None
        self._coroutine.close()

    def _listen(self) -> None:
        coroutine = self._receive()
        assert isinstance(coroutine, Coroutine)
        self._coroutine: Coroutine[Any, Any, Message] = coroutine
        self._step(None)

    def _step(self, _: object) -> None:
        if self._closed:
            return
        self._waits_for = None
        try:
            self._waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            if stop.value["type"] == "http.disconnect":
                self.fired = True
                self._callback()
            else:  # a stray empty body message
                self._listen()
            return
        assert self._waits_for is not None
        self._waits_for.add_done_callback(self._step)


async def relay(
    client: Client,
    receive: Receive,
    answer: Coroutine[Any, Any, Opened],
    *,
    endpoint: Endpoint,
    keep_alive: float | None,
) -> None:
    """See one call through, from waiting for `answer` to the last byte. `keep_alive`: seconds of silence after which
    a stream gets a comment (and, before the answer, its head), None where no stream was asked for.

    It always returns normally; how it went stands in `client.call`."""
    task = asyncio.current_task()
    assert task is not None
    disconnect = Disconnect(receive, task.cancel)
    pulse = Pulse(client, keep_alive) if keep_alive else None
    opened: Opened | None = None
    try:
        try:
            opened = await answer
            await _deliver(client, opened)
        except ApiError as exc:
            await _fail(client, endpoint, exc)
    except Unsayable:
        return  # the server closes the connection of an answer that wasn't finished
    except asyncio.CancelledError:
        if disconnect.fired:
            task.uncancel()
            if not (client.open and opened is not None and _told_all(opened)):
                client.call.status = CLIENT_LEFT
        else:  # the server's patience with this call is over
            task.uncancel()
            await _fail(client, endpoint, shutting_down())
    finally:
        answer.close()
        disconnect.close()
        if pulse is not None:
            pulse.close()
        client.close()
        if opened is not None:
            opened.close()


def _told_all(opened: Opened) -> bool:
    """Has the client all there is, its end marker included? Official clients hang up there, before the engine does."""
    answer = opened.answer
    return not isinstance(answer, Whole) and all(source.decoder.done for source in answer.sources)


async def _deliver(client: Client, opened: Opened) -> None:
    answer = opened.answer
    call = client.call
    if isinstance(answer, Whole):
        call.usage = answer.usage
        if not call.started:
            await client.respond(200, answer.content_type, answer.body, answer.headers)
        else:  # a stream was asked for and kept alive, and the engine answered with one object after all
            events = answer.content_type.startswith("text/event-stream")
            client.answer(answer.body if events else b"data: " + b" ".join(answer.body.splitlines()) + b"\n\n" + DONE)
            await client.finish()
        return
    if not call.started:
        client.head(answer.content_type, answer.headers)
    client.exchanges = tuple(source.exchange for source in answer.sources)
    try:
        if len(answer.sources) == 1:
            await _pump(client, opened, answer.sources[0])
        else:
            await together(_pump(client, opened, source) for source in answer.sources)
    except ApiError as exc:
        opened.blot(exc)
        call.failed(exc)
        decoders = [source.decoder for source in answer.sources]
        last_words = b"".join(decoder.take_pending() for decoder in decoders) + decoders[0].error(exc)
        if not last_words:
            raise Unsayable from None
        client.write(last_words)
    call.usage = next((s.decoder.usage for s in answer.sources if s.decoder.usage is not None), None)
    await client.finish()


async def _pump(client: Client, opened: Opened, source: Source) -> None:
    """One engine stream: every piece decoded and written as it arrives. Raises `ApiError` for what ends it early."""
    if source.opening is not None:
        try:
            source = await source.opening
        except TransportError as exc:
            raise opened.broken(exc) from None
    exchange, decoder = source.exchange, source.decoder
    loop = asyncio.get_running_loop()
    linger: asyncio.TimerHandle | None = None

    def wrote(out: bytes) -> None:
        nonlocal linger
        source.decoded.append(out)
        ready = b"".join(source.decoded)
        source.decoded.clear()
        if ready:
            client.answer(ready)
        if decoder.cut:
            exchange.finish()
        elif decoder.done and linger is None:
            linger = loop.call_later(LINGER, exchange.finish)

    try:
        wrote(b"")
        if source.failed is not None:
            raise source.failed
        await exchange.pump(lambda data: wrote(decoder.feed(data)))
        if not decoder.done:
            wrote(decoder.flush())
    except TransportError as exc:
        if not decoder.done:
            raise opened.broken(exc) from None
    finally:
        if linger is not None:
            linger.cancel()


class Unsayable(Exception):
    """A body of bytes broke off, and nothing inside it can say so: the connection is closed without its end."""


def shutting_down() -> ApiError:
    """For a call that the server has no more time for."""
    return error("backend_unavailable", "The gateway is shutting down. Send the request again in a moment.")


async def _fail(client: Client, endpoint: Endpoint, exc: ApiError) -> None:
    if not client.call.started:
        await client.fail(exc)
        return
    client.call.failed(exc)
    client.write(error_events(endpoint, exc))
    await client.finish()


class Pulse:
    """Comments for a stream while its engine is silent. One timer, looked at rather than moved with every piece."""

    def __init__(self, client: Client, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(interval, self._beat)

    def close(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        client = self._client
        silent = self._loop.time() - client.wrote
        if silent < self._interval:
            self._timer = self._loop.call_later(self._interval - silent, self._beat)
            return
        if client.open:
            if not client.call.started:
                client.head(CONTENT_TYPE, [])
            waiting = client.call.waiting
            client.write(KEEP_ALIVE if waiting is None else comment(waiting()))
        self._timer = self._loop.call_later(self._interval, self._beat)
