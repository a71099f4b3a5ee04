"""What a hostile reading of the client's side found: requests cut or framed in odd ways, and ends that meet slow
clients. Each of these once went wrong.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from proxy.client_connection import DISCARD, LOOK, STALLED, ClientConnection
from proxy.client_parser import MAX_HEAD
from proxy.exchange import Exchange
from proxy.transport import Limits, Origin, Transport
from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    REPLY,
    SSE,
    STREAM,
    Client,
    backend,
    client,
    event,
    never,
    ok,
    scene,
)
from tests.proxy.harness import Got, Handler, Line, Running, engine, until
from tests.proxy.test_client_connection import POST, answer, echo

BODY = json.dumps(CHAT).encode()
HEAD = b"POST %b HTTP/1.1\r\nhost: x\r\n" % CHAT_PATH.encode()
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(BODY), BODY)
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"


# -- framing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [LENGTH + BODY, CHUNKED + b"0\r\n\r\n"], ids=["length", "chunks"])
async def test_an_offer_of_http_2_costs_no_body(rest: bytes) -> None:
    """As Java's own client makes it with its first request. The parser stops behind such a head."""
    head, _, body = rest.partition(b"\r\n\r\n")
    async with scene(ok) as (upstream, gate):
        async with client(gate.url) as one:
            one.writer.write(HEAD + H2C + head + b"\r\n\r\n")
            await one.writer.drain()
            await until(lambda: any(c._request for c in connections(gate)))
            one.writer.write(body)
            assert (await one.answer())[0] == 200
        async with client(gate.url) as one:
            one.writer.write(2 * (HEAD + H2C + rest) + b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await one.everything()).count(b"HTTP/1.1 200 OK") == 3
        assert [got.json["messages"] for got in upstream.got] == [CHAT["messages"]] * 3


async def test_an_offer_of_http_2_does_not_hide_two_lengths() -> None:
    async with scene(ok) as (upstream, gate), client(gate.url) as one:
        one.writer.write(HEAD + H2C + b"content-length: 2\r\n" + CHUNKED + b"0\r\n\r\n")
        assert (await one.everything()).startswith(b"HTTP/1.1 400 ")
        assert not upstream.got


async def test_trailers_are_no_headers() -> None:
    async with scene(ok) as (upstream, gate), client(gate.url) as one:
        one.writer.write(HEAD + CHUNKED + b"0\r\ntraceparent: late\r\n\r\n")
        assert (await one.answer())[0] == 200
        assert "traceparent" not in upstream.got[0].headers


@pytest.mark.parametrize("what", [b"0\r\nx: ", b"1;"], ids=["a trailer", "a chunk's extension"])
async def test_what_stands_behind_a_body_has_an_end_too(what: bytes) -> None:
    async with scene(ok) as (upstream, gate), client(gate.url) as one:
        one.writer.write(HEAD + CHUNKED + what)
        await one.writer.drain()
        await until(lambda: any(c._request for c in connections(gate)))
        one.writer.write(b"a" * (8 * MAX_HEAD))  # two reads at least
        assert (await one.everything()).startswith(b"HTTP/1.1 400 ")
        assert not upstream.got


async def test_a_head_that_begins_behind_much_else_is_not_too_large() -> None:
    """In one read with the body before it."""
    connection = stand_in(echo)
    before = POST % (2 * MAX_HEAD) + bytes(2 * MAX_HEAD)
    connection.data_received(before + (POST % 2)[:20])
    connection.data_received((POST % 2)[20:] + b"hi")
    written = cast(Any, connection._transport).written
    await until(lambda: b"".join(written).endswith(b"\r\n\r\nhi"))
    assert not connection._transport.is_closing()
    connection.connection_lost(None)


async def test_nothing_is_carried_out_behind_a_body_that_was_too_much() -> None:
    ran = 0

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ran
        ran += 1
        await answer(send, b"no", 413)

    connection = stand_in(refuse)
    connection.data_received(POST % (DISCARD + 1))
    await until(lambda: connection._request is not None and connection._request.complete)
    connection.data_received(bytes(DISCARD))
    connection.data_received(bytes(1) + POST % 0)
    for _ in range(5):
        await asyncio.sleep(0)

    assert ran == 1
    connection.connection_lost(None)


@pytest.mark.parametrize("told", [{"expect": "100-continue"}, {}], ids=["asked", "not asked"])
async def test_who_asks_before_the_body_and_is_refused_is_told_what_comes_next(told: dict[str, str]) -> None:
    """It may never send that body, so that what follows would be taken for it."""
    async with scene(ok, server={"api_keys": ["k"]}) as (_, gate), client(gate.url) as one:
        await one.head(CHAT_PATH, {"content-length": "500"} | told)
        status, headers = await one.answer()
        assert status == 401
        assert headers.get("connection") == ("close" if told else None)


async def test_http_1_0_knows_no_continue() -> None:
    async with scene(ok) as (_, gate), client(gate.url) as one:
        one.writer.write(HEAD.replace(b"1.1", b"1.0") + b"expect: 100-continue\r\n" + LENGTH)
        await one.writer.drain()
        await until(lambda: any(c._request for c in connections(gate)))
        one.writer.write(BODY)
        assert (await one.answer())[0] == 200


async def test_head_is_told_the_length_of_get() -> None:
    async with scene(ok) as (_, gate):
        lengths = {(await gate.client.request(how, "/v1/models")).headers["content-length"] for how in ("GET", "HEAD")}
        assert len(lengths) == 1
        assert lengths != {"0"}


@pytest.mark.parametrize("lines", [["6.6.6.6, 10.0.0.1"], ["6.6.6.6", "10.0.0.1"], ["6.6.6.6", "7.7.7.7, 10.0.0.1"]])
async def test_a_proxy_here_tells_the_client_last(lines: list[str]) -> None:
    """Some proxies write a line of their own below the client's."""
    async with scene(None) as (_, gate):
        connection = stand_in(gate.gateway.app)
        forwarded = "".join(f"x-forwarded-for: {line}\r\n" for line in lines)
        connection.data_received(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{forwarded}\r\n".encode())
        await until(lambda: any(line["path"] == "/v1/models" for line in gate.log))
        assert gate.log[-1]["client"] == "10.0.0.1"
        connection.connection_lost(None)


# -- slow clients --------------------------------------------------------------------------------------------


def ends_when(told: asyncio.Event) -> Handler:
    """Of a stream the first event, then the rest in one piece; a plain answer to anything else."""

    async def handler(got: Got, line: Line) -> None:
        if not got.json.get("stream"):
            await line.reply(200, REPLY)
            return
        await line.head(200, SSE)
        await line.chunk(event("one"))
        await told.wait()
        rest = event("two", finish="stop") + DONE
        line.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))

    return handler


async def slow_at_the_end(gate: Running, one: Client, told: asyncio.Event) -> ClientConnection:
    """Begins a stream; its end is written, and waits for that client."""
    await one.send(CHAT_PATH, STREAM)
    await one.answer()
    await one.until(b"one")
    (connection,) = connections(gate)
    connection.pause_writing()  # as its transport does when the client doesn't read
    told.set()
    await until(lambda: waits_in(gate, "finish") is not None)
    return connection


@pytest.mark.interpreted  # looks into coroutines
async def test_the_server_s_end_adds_nothing_to_a_stream_that_has_its_own() -> None:
    told = asyncio.Event()
    async with scene(ends_when(told)) as (_, gate), client(gate.url) as one:
        await slow_at_the_end(gate, one, told)
        give_up(gate)
        got = await one.everything()

        assert got.count(b"[DONE]") == 1
        assert got.endswith(b"0\r\n\r\n")
        (line,) = await gate.logged()
        assert (line["status"], line.get("code")) == (200, None)


@pytest.mark.interpreted  # as above
@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_the_server_s_end_meets_an_answer_that_waits_for_its_client(
    asked: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As the second of two that were sent ahead does, where the first was long."""

    async def handler(_: Got, line: Line) -> None:
        await line.reply(400, b'{"error":{"message":"no"}}')

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await until(lambda: len(connections(gate)) == 1)
        connections(gate)[0].pause_writing()
        with caplog.at_level(logging.ERROR):
            await one.send(CHAT_PATH, asked)
            await until(lambda: waits_in(gate, "respond") is not None)
            give_up(gate)
            (line,) = await gate.logged()
            assert not backend(gate).in_flight
            assert await one.everything() == b""

    assert not caplog.records
    assert line["code"] == "backend_unavailable"


@pytest.mark.interpreted  # as above
async def test_a_slow_reader_holds_no_place_at_an_engine_that_is_done() -> None:
    told = asyncio.Event()
    async with scene(ends_when(told), backend={"max_in_flight": 1}) as (_, gate), client(gate.url) as one:
        connection = await slow_at_the_end(gate, one, told)
        assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
        assert waits_in(gate, "finish") is not None

        connection.resume_writing()
        assert (await one.rest()).endswith(DONE)


@pytest.mark.interpreted  # as above
async def test_who_leaves_with_the_end_unread_has_left() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one", finish="stop") + DONE)
        await line.closed.wait()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await until(lambda: (pump := waits_in(gate, "_pump")) and pump.cr_frame.f_locals["decoder"].done)
        (connection,) = connections(gate)
        connection.pause_writing()  # as its transport does
        one.leave()

        (line,) = await gate.logged()
        assert line["status"] == 499


async def test_a_client_that_reads_slowly_is_not_one_that_does_not_read() -> None:
    connection = stand_in(echo)
    transport = cast(Any, connection._transport)
    now = 0.0
    connection.loop = cast(Any, SimpleNamespace(time=lambda: now))
    transport.held = 50_000_000
    connection.pause_writing()
    while now < 2 * STALLED:
        connection._look()
        now += LOOK
        transport.held -= 1000
    assert not transport.aborted
    while not transport.aborted:
        connection._look()
        now += LOOK
        assert now < 10 * STALLED
    connection.connection_lost(None)


# -- what is left behind -------------------------------------------------------------------------------------


async def test_the_server_s_end_waits_for_no_body_of_an_answered_request() -> None:
    async with scene(ok, server={"max_body": 1000}) as (_, gate), client(gate.url) as one:
        await one.head(CHAT_PATH, {"content-length": "5000"})
        assert (await one.answer())[0] == 413
        (connection,) = connections(gate)
        connection.shutdown()
        assert connection._closing
        assert await one.everything() != b""  # the rest of that answer, and the end


async def test_a_connection_that_was_being_made_during_a_sweep_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real = loop.create_connection
    transport = Transport(Limits(response=0.0))

    async def meanwhile(*args: Any, **how: Any) -> Any:
        made = await real(*args, **how)
        transport._sweep()
        return made

    monkeypatch.setattr(loop, "create_connection", meanwhile)
    async with engine(never) as upstream:
        origin = Origin.parse(upstream.root)
        exchange = Exchange()
        exchange.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", await transport.connect(origin))
        try:
            assert transport.open_to(origin) == 1
        finally:
            exchange.close()
            transport.close()


@pytest.mark.interpreted  # takes a weak reference
@pytest.mark.parametrize("how", ["answered", "refused", "left", "left behind another"])
async def test_a_connection_that_ended_is_freed_at_once(how: str) -> None:
    """Without the garbage collector, which looks less often here than elsewhere."""
    async with scene(never if "left" in how else ok) as (upstream, gate), client(gate.url) as one:
        if how == "refused":
            await one.send(CHAT_PATH, b"{")
        else:
            await one.send(CHAT_PATH, CHAT)
        if how == "left behind another":
            one.writer.write(HEAD + LENGTH + BODY)
        if "left" in how:
            await upstream.arrived.wait()
        else:
            await one.answer()
        gc.collect()
        gc.disable()
        try:
            (known,) = [weakref.ref(connection) for connection in connections(gate)]
            one.leave()
            await until(lambda: known() is None)
        finally:
            gc.enable()


# -- helpers -------------------------------------------------------------------------------------------------


class Sink(asyncio.Transport):
    """A client that is not there."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.held = 0
        self.written: list[bytes] = []
        self.closing = self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written.append(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.held


def stand_in(app: Any) -> ClientConnection:
    """A connection of no client."""
    config = uvicorn.Config(app, lifespan="off", log_level="critical", proxy_headers=False)
    config.load()
    connection = ClientConnection(config, ServerState(), {})
    connection.connection_made(Sink())
    return connection


def connections(gate: Running) -> list[ClientConnection]:
    return [cast(ClientConnection, one) for one in gate.server.server_state.connections]


def waits_in(gate: Running, name: str) -> Any:
    """What of a request's task waits in a function of that name, if any."""
    for task in gate.server.server_state.tasks:
        at: Any = task.get_coro()
        while at is not None and hasattr(at, "cr_await"):
            if at.cr_code.co_name == name:
                return at
            at = at.cr_await
    return None


def give_up(gate: Running) -> None:
    """As the server does at its end with what is still running."""
    for connection in connections(gate):
        connection.shutdown()
    for task in gate.server.server_state.tasks:
        task.cancel()
