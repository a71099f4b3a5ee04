"""The client's side of a call: it writes the answer, notices that the client left, keeps a silent stream alive, and
puts errors where a client can see them.

The whole call is raced against the client's disconnect, reading the prompt included. Pieces are written inside the
upstream's read callback; where the server's buffer is full the upstream is not read until it has drained. A stream
that has begun ends with its end marker or with an error inside it, never with silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from proxy.answer import Opened, Source, Whole, together
from proxy.call import CLIENT_LEFT, Call, clock
from proxy.client_request import ClientRequest
from proxy.connection import TransportError
from proxy.dialects.base import Endpoint
from proxy.errors import ApiError, error
from proxy.events import CONTENT_TYPE, DONE, KEEP_ALIVE, comment, error_events
from proxy.exchange import Consumer, Exchange
from proxy.headers import RawHeaders
from proxy.sweep import Sweep
from proxy.wire import dump_error

LOOKS: Final = 4  # of a pulse in one interval of silence: a comment comes at most so much later
LINGER: Final = 1.0  # seconds that an engine has for ending its answer after the end marker, to keep its connection
STREAM_HEADERS: Final[RawHeaders] = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
STREAM_OWN: Final = frozenset(name for name, _ in STREAM_HEADERS)


class Client:
    """Writes one response. `head`, `write` and `finish` are for streams, `respond` for everything else."""

    def __init__(self, call: Call, request: ClientRequest) -> None:
        self.call = call
        self.request = request
        self.exchanges: tuple[Exchange, ...] = ()  # paused while the client is slow
        self.loop = request.loop
        self._ending = False
        self._quiet = 0  # looks of the pulse since something was written
        self._written = 0  # bytes until the last of them

    async def respond(self, status: int, content_type: str, body: bytes, headers: RawHeaders) -> None:
        """A whole response; waits while the client is slow."""
        call, request = self.call, self.request
        call.status = status
        call.started = self._ending = True
        call.first_byte = clock() if status < 400 else None
        call.bytes_out = len(body)
        if request.slow:
            await request.drained()
        request.begin(status, [(b"content-type", content_type.encode()), *headers, *call.headers], len(body))
        request.end(body)

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
        self.request.begin(
            200, [(b"content-type", content_type.encode()), *STREAM_HEADERS, *passing, *self.call.headers]
        )

    def write(self, data: bytes) -> None:
        """Part of a stream. Never waits: while the client is slow the exchanges are paused, so at most what was read
        already is held for it."""
        if not self.request.write(data):
            self.hold()

    def answer(self, data: bytes) -> None:
        """`write` of what an engine said."""
        if self.call.first_byte is None:
            self.call.first_byte = clock()
        self.write(data)

    async def finish(self) -> None:
        """End a stream, once the client has read nearly all that was written."""
        self._ending = True
        if self.request.slow:
            await self.request.drained()
        self.request.end()
        self.call.bytes_out = self.request.written

    def cut_short(self) -> bool:
        """Is all said, but to a client that reads too slowly? Then there is no more waiting for it."""
        if self._ending and self.request.started:
            self.request.end()
        elif self._ending:
            self.call.failed(shutting_down())
        return self._ending

    @property
    def open(self) -> bool:
        """May something be written that isn't the answer? Not behind its end, nor to a client that doesn't read."""
        return not self._ending and not self.request.slow

    def beat(self) -> None:
        """A look of the pulse: a comment for a stream whose engine is silent. No piece moves a timer for that, or asks
        for the time."""
        if self._written != self.request.written:
            self._written, self._quiet = self.request.written, 0
        self._quiet += 1
        if self._quiet <= LOOKS:  # the first of them may have come right behind a piece
            return
        self._quiet = 0
        if self.open:
            if not self.call.started:
                self.head(CONTENT_TYPE, [])
            waiting = self.call.waiting
            self.write(KEEP_ALIVE if waiting is None else comment(waiting()))

    def close(self) -> None:
        """Nothing more will be written."""
        self.call.bytes_out = self.request.written
        self.exchanges = ()
        self.request.resumed = None

    def hold(self) -> None:
        """Don't read from the engines until the client has caught up."""
        self.request.resumed = self._release
        for exchange in self.exchanges:
            exchange.pause()

    def _release(self) -> None:
        self.request.resumed = None
        for exchange in self.exchanges:
            exchange.resume()


async def relay(
    client: Client,
    answer: Coroutine[Any, Any, Opened],
    *,
    endpoint: Endpoint,
    pulse: Sweep | None,
) -> None:
    """See one call through, from waiting for `answer` to the last byte. `pulse`: looks `LOOKS` times in that interval
    of silence after which a stream gets a comment (and, before the answer, its head); None where no stream was asked
    for.

    It always returns normally; how it went stands in `client.call`."""
    request = client.request
    task = request.task
    assert task is not None
    request.watch(task.cancel)
    if pulse is not None:
        pulse.add(client.beat, client.loop)
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
        if request.gone:
            task.uncancel()
            if not (client.open and opened is not None and _told_all(opened)):
                client.call.status = CLIENT_LEFT
        else:  # the server's patience with this call is over
            task.uncancel()
            if not client.cut_short():
                await _fail(client, endpoint, shutting_down())
    finally:
        if opened is None:
            answer.close()
        request.watch(None)
        if pulse is not None:
            pulse.discard(client.beat)
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
        opened.close()  # a client that reads slowly holds no place at an engine that is done
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
    opened.close()  # as above
    await client.finish()


async def _pump(client: Client, opened: Opened, source: Source) -> None:
    """One engine stream: every piece decoded and written as it arrives. Raises `ApiError` for what ends it early."""
    if source.opening is not None:
        try:
            source = await source.opening
        except TransportError as exc:
            raise opened.broken(exc) from None
    decoder = source.decoder
    pieces = Pieces(client, source)
    try:
        pieces.write(b"")
        if source.failed is not None:
            raise source.failed
        await source.exchange.pump(pieces)
        if not decoder.done:
            pieces.write(decoder.flush())
    except TransportError as exc:
        if not decoder.done:
            raise opened.broken(exc) from None
    finally:
        pieces.close()


class Pieces(Consumer):
    """From one engine stream's reads to the client."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self._exchange = source.exchange
        self._decoder = source.decoder
        self._decoded = source.decoded
        self._request = client.request
        self._alone = len(client.exchanges) == 1  # no other stream's pieces come between
        self._begun = False
        self._linger: asyncio.TimerHandle | None = None

    def take(self, data: bytes) -> None:
        """What was read: decode and write it."""
        out = self._decoder.feed(data)
        if not self._begun:
            self.write(out)
            return
        if out and not self._request.write(out):
            self._client.hold()
        if self._decoder.done:
            self._over()

    def write(self, out: bytes) -> None:
        """What was decoded, behind what was before."""
        if self._decoded:  # the beginning, or another stream's piece that came before this one
            out = b"".join([*self._decoded, out])
            self._decoded.clear()
        if out:
            self._client.answer(out)
            self._begun = self._alone
        if self._decoder.done:
            self._over()

    def _over(self) -> None:
        """At the end marker the engine has a moment to end its answer."""
        if self._decoder.cut:
            self._exchange.finish()
        elif self._linger is None:
            self._linger = self._client.loop.call_later(LINGER, self._exchange.finish)

    def close(self) -> None:
        if self._linger is not None:
            self._linger.cancel()


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
