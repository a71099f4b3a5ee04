"""One client's connection over a real socket: heads, bodies, pipelining, leaving, and what is refused.

The application is the test's own, so that nothing but the connection is tried.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from proxy.client_connection import DISCARD, ClientConnection
from proxy.client_parser import MAX_HEAD
from tests.engines.process import PATIENCE

App = Callable[[Any, Any, Any], Awaitable[None]]
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
POST = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"


@asynccontextmanager
async def serving(app: App, connection: Any = ClientConnection) -> AsyncIterator[Connect]:
    """Connects to a server with that application."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=connection, lifespan="off", log_level="critical", access_log=False,
                            timeout_graceful_shutdown=1)  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve(sockets=[sock]))
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.close()
        server.should_exit = True
        await task


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    await answer(send, body)


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of an answer with a length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await asyncio.wait_for(reader.readexactly(length), PATIENCE)


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(b"".join(POST % 3 + b"%03d" % number for number in range(20)))
        answers = [(await read_answer(reader))[1] for _ in range(20)]

    assert answers == [b"%03d" % number for number in range(20)]


async def test_a_request_sent_ahead_waits_for_the_answer_before_it() -> None:
    """However the requests were cut into reads, and however long the first one takes."""
    running = most = 0

    async def slow_first(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        body = (await receive())["body"]
        while len(body) < 3:
            body += (await receive())["body"]
        await asyncio.sleep(0.05 if body == b"one" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": body[1:]})
        running -= 1

    whole = b"".join(POST % 3 + body for body in (b"one", b"two", b"six"))
    async with serving(slow_first) as connect:
        for cut in (len(whole), 70, 100, 120, 150):
            reader, writer = await connect()
            writer.write(whole[:cut])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(whole[cut:])
            assert [(await read_answer(reader))[1] for _ in range(3)] == [b"one", b"two", b"six"]

    assert most == 1


async def test_nonsense_behind_a_request_costs_that_request_nothing() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(POST % 2 + b"hi" + b"nonsense\r\n\r\n")
        head, body = await read_answer(reader)
        rest = await asyncio.wait_for(reader.read(), PATIENCE)

    assert head.startswith(b"HTTP/1.1 200 ")
    assert (body, rest) == (b"hi", b"")


async def test_a_client_that_leaves_behind_a_request_sent_ahead_is_noticed() -> None:
    left = asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serving(wait) as connect:
        _, writer = await connect()
        writer.write(POST % 0 + POST % 0)
        await writer.drain()
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), PATIENCE)


@pytest.mark.interpreted
async def test_head_and_body_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    plain = ClientConnection.put
    monkeypatch.setattr(ClientConnection, "put", lambda self, data: (writes.append(data), plain(self, data))[1])
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(POST % 2 + b"hi")
        await read_answer(reader)

    assert len(writes) == 1
    assert writes[0].endswith(b"\r\n\r\nhi")


async def test_a_body_that_nobody_reads_costs_no_connection_unless_it_is_long() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"no", 413)

    async with serving(refuse) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(POST % 500_000 + bytes(500_000))
            head, _ = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 413 ")
        writer.write(POST % (3 * DISCARD) + bytes(2 * DISCARD))
        await read_answer(reader)
        writer.write(POST % 0)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE)


async def test_the_client_may_ask_before_it_sends_a_body() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(b"POST /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        told = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        writer.write(b"ok")
        _, body = await read_answer(reader)

    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert body == b"ok"


async def test_http_1_0_gets_a_body_without_chunks_and_the_end_of_its_connection() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(stream) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head
    assert body == b"one two"


async def test_head_has_no_body_and_leaves_the_connection_in_step() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(b"HEAD / HTTP/1.1\r\nhost: h\r\n\r\n" + POST % 2 + b"hi")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        _, body = await read_answer(reader)

    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"hi"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\nx: " + b"a" * (MAX_HEAD * 5),
        b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: y\r\n" * 300 + b"\r\n",
        b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["nonsense", "a long head", "many headers", "two lengths"],
)
async def test_what_is_no_good_request_is_refused_in_openais_envelope(sent: bytes) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(never) as connect:
        reader, writer = await connect()
        writer.write(sent)
        head, body = await read_answer(reader)

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}


async def test_a_line_break_in_a_header_of_the_answer_never_leaves() -> None:
    async def split(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="line break"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"1\r\nset-cookie: a=b")]})
        await answer(send, b"ok")

    async with serving(split) as connect:
        reader, writer = await connect()
        writer.write(POST % 0)
        head, body = await read_answer(reader)

    assert b"set-cookie" not in head
    assert body == b"ok"
