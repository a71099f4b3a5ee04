# ruff: noqa: E501 - cases in one line each
"""Engines that speak HTTP in other ways than most, or hardly at all; and headers, which stop at the gateway in both
directions unless they are named.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    REPLY,
    SSE,
    STREAM,
    client,
    errors,
    event,
    ok,
    scene,
    strikes,
)
from tests.proxy.harness import Got, Line

RIGHT = json.loads(REPLY) | {"model": "pub"}
JSON = b"content-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(REPLY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\n" % (5, REPLY[:5], len(REPLY) - 5, REPLY[5:])


async def raw(line: Line, *parts: bytes, close: bool = False) -> None:
    """Those bytes, each part in a read of its own."""
    for part in parts:
        line.writer.write(part)
        await line.writer.drain()
        for _ in range(6):
            await asyncio.sleep(0)
    if close:
        line.writer.close()


# What it writes, and whether it closes the connection then.
PLAIN = {
    "HTTP/1.0 without a length": (b"HTTP/1.0 200 OK\r\n" + JSON + b"\r\n" + REPLY, True),
    "HTTP/1.1 without a length": (b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n" + REPLY, True),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\n" + JSON + LENGTH + b"\r\n" + REPLY, True),
    "Connection: close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + JSON + LENGTH + b"\r\n" + REPLY, True),
    "Connection: close, left open": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + JSON + LENGTH + b"\r\n" + REPLY, False),
    "100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + JSON + LENGTH + b"\r\n" + REPLY, False),
    "103 Early Hints": (b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n" + JSON + LENGTH + b"\r\n" + REPLY, False),
    "chunk extensions and trailers": (b"HTTP/1.1 200 OK\r\n" + JSON + CHUNKED + b"\r\n" + CHUNKS + b"x-sum: 1\r\n\r\n", False),
    "no reason phrase": (b"HTTP/1.1 200\r\n" + JSON + LENGTH + b"\r\n" + REPLY, False),
    "headers in capitals": (b"HTTP/1.1 200 OK\r\n" + (JSON + LENGTH).upper().replace(b"JSON", b"json").replace(b"APPLICATION", b"application") + b"\r\n" + REPLY, False),
    "surplus bytes": (b"HTTP/1.1 200 OK\r\n" + JSON + LENGTH + b"\r\n" + REPLY + b"\r\n\r\nwhat?", False),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN)
async def test_odd_but_right(case: tuple[bytes, bool]) -> None:
    """In one read, and byte by byte."""
    data, close = case

    async def handler(got: Got, line: Line) -> None:
        cut = got.json["n"] > 1
        await raw(line, *([data[n : n + 1] for n in range(len(data))] if cut else [data]), close=close)

    async with scene(handler) as (_, gate):
        for n in range(4):
            reply = await gate.client.post(CHAT_PATH, json=CHAT | {"n": n})

            assert (reply.status_code, reply.json()) == (200, RIGHT)
            assert "link" not in reply.headers
        assert strikes(gate) == 0


@pytest.mark.parametrize("first", [b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_stream_that_ends_with_its_connection(first: bytes, whole: bool) -> None:
    said = event("one") + (event("two", finish="stop") + DONE if whole else event("two")[:20])

    async def handler(_: Got, line: Line) -> None:
        await raw(line, first + b"\r\ncontent-type: text/event-stream\r\n\r\n", said, close=True)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=STREAM)

        if whole:
            assert reply.content == event("one", "pub") + event("two", "pub", "stop") + DONE
        else:
            assert reply.content.startswith(event("one", "pub") + b'data: {"error"')
            assert [error["code"] for error in errors(reply.content)] == ["upstream_incomplete"]
            assert reply.content.endswith(DONE)


HTML = b"<html><body>Bad Gateway</body></html>"
BROKEN = {
    "garbage": (b"\x16\x03\x01\x02\x00 what?\r\n\r\n", 503, "backend_unavailable"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", 503, "backend_unavailable"),
    "switching protocols": (b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 503, "backend_unavailable"),
    "a length that is none": (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", 503, "backend_unavailable"),
    "length and chunks": (b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"content-length: 3\r\n\r\n", 503, "backend_unavailable"),
    "a chunk that is none": (b"HTTP/1.1 200 OK\r\n" + JSON + CHUNKED + b"\r\nzz\r\n", 502, "upstream_incomplete"),
    "an HTML error page": (b"HTTP/1.1 502 X\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(HTML) + HTML, 502, "upstream_invalid_response"),
    "JSON that is none": (b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: 6\r\n\r\n{oops}", 502, "upstream_invalid_response"),
    "a redirect": (b"HTTP/1.1 307 X\r\nlocation: http://secret.internal/x\r\ncontent-length: 0\r\n\r\n", 502, "upstream_invalid_response"),
    "not modified": (b"HTTP/1.1 304 X\r\n\r\n", 502, "upstream_invalid_response"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_answer(case: tuple[bytes, int, str], caplog: pytest.LogCaptureFixture) -> None:
    data, status, code = case

    async def handler(_: Got, line: Line) -> None:
        await raw(line, data)
        await line.closed.wait()

    async with scene(handler) as (upstream, gate):
        for asked in (CHAT, STREAM):
            upstream.got.clear()
            reply = await gate.client.post(CHAT_PATH, json=asked)

            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
            assert reply.headers["content-type"] == "application/json"
            assert "'b'" in reply.json()["error"]["message"]
            assert "location" not in reply.headers
            assert "secret" not in reply.text
            assert len(upstream.got) == 1
            assert not caplog.records
            upstream.lines[-1].drop()
            await upstream.lines[-1].closed.wait()


NOT_A_CHAT = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an HTML page": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(HTML), HTML),
    "nothing": b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
@pytest.mark.parametrize("data", NOT_A_CHAT.values(), ids=NOT_A_CHAT)
async def test_a_success_that_is_no_chat(data: bytes, asked: dict) -> None:
    """LM Studio answers 200 to every path, a web server its front page: a client of an API can do nothing with it."""

    async def handler(_: Got, line: Line) -> None:
        await raw(line, data)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_invalid_response")


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
async def test_events_that_are_no_json_where_one_object_is_wanted(kind: str) -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(b"data: nonsense\n\n" + event("x", finish="stop") + DONE)
        await line.end()

    async with scene(handler, kind=kind) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_invalid_response")


@pytest.mark.parametrize("value", [b"a\x01b", b"a\x7fb", b"\xff\xfe", b"\tx\t", b"", b"x" * 9000])
async def test_odd_header_values(value: bytes) -> None:
    """Whatever stands in a header of no interest: the answer gets through, or an error that says what it was."""

    async def handler(_: Got, line: Line) -> None:
        await raw(line, b"HTTP/1.1 200 OK\r\nx-odd: " + value + b"\r\n" + JSON + LENGTH + b"\r\n" + REPLY)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert reply.status_code == 200 or reply.json()["error"]["code"] == "backend_unavailable"


@pytest.mark.parametrize(
    "kind", [b"application/json\x01", b'application/json; x="\xff"', b"APPLICATION/JSON", b"Text/Event-Stream"]
)
async def test_odd_content_types(kind: bytes) -> None:
    body = event("x", finish="stop") + DONE if b"vent" in kind else REPLY

    async def handler(_: Got, line: Line) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
        await raw(line, head + body)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=STREAM if b"vent" in kind else CHAT)

        assert reply.status_code in (200, 502, 503)
        if reply.status_code != 200:
            assert reply.json()["error"]["code"]
        else:
            assert b'"up"' not in reply.content


# -- headers ------------------------------------------------------------------------------------------------------


async def test_what_never_reaches_a_client() -> None:
    secret = {
        "set-cookie": "session=1",
        "server": "their-server",
        "location": "http://secret/",
        "keep-alive": "timeout=5",
        "x-request-id": "theirs",
        "access-control-allow-origin": "*",
        "trailer": "x",
        "upgrade": "h2c",
        "proxy-authenticate": "Basic",
    }

    async def handler(got: Got, line: Line) -> None:
        if got.json.get("stream"):
            await line.head(200, SSE | secret | {"x-fine": "yes"})
            await line.chunk(event("x", finish="stop") + DONE)
            await line.end()
        else:
            await line.reply(200, REPLY, x_fine="yes", **secret)

    async with scene(handler) as (_, gate):
        for asked in (CHAT, STREAM):
            reply = await gate.client.post(CHAT_PATH, json=asked)

            assert reply.headers["x-fine"] == "yes"
            for name, value in secret.items():
                assert reply.headers.get(name) != value, name
        assert not gate.client.cookies


async def test_no_cookie_comes_back_to_the_engine() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.reply(200, REPLY, set_cookie="session=1")

    async with scene(handler) as (upstream, gate):
        for _ in range(2):
            await gate.client.post(CHAT_PATH, json=CHAT)

        assert all("cookie" not in got.headers for got in upstream.got)


@pytest.mark.parametrize("key", [None, "engine-key"])
async def test_what_never_reaches_an_engine(key: str | None) -> None:
    sent = {
        "authorization": "Bearer client-key",
        "cookie": "a=b",
        "x-api-key": "client-key",
        "proxy-authorization": "Basic x",
        "te": "trailers",
        "x-forwarded-for": "10.1.2.3",
        "origin": "http://localhost:3000",
        "referer": "http://secret/",
        "accept-encoding": "gzip, br",
        "api-key": "client-key",
    }
    passes = {"traceparent": "00-1-2-01", "user-agent": "tests/1"}
    async with scene(ok, backend={"api_key": key} if key else None, server={"api_keys": ["client-key"]}) as (
        upstream,
        gate,
    ):
        reply = await gate.client.post(CHAT_PATH, json=CHAT, headers=sent | passes)

        assert reply.status_code == 200
        (got,) = upstream.got
        assert got.headers.get("authorization") == (f"Bearer {key}" if key else None)
        assert got.headers["accept-encoding"] == "identity"
        assert "client-key" not in str(got.headers)
        for name in sent.keys() - {"authorization", "accept-encoding"}:
            assert name not in got.headers, name
        assert passes.items() <= got.headers.items()


async def test_the_connection_is_used_again() -> None:
    """A stream that ended well leaves the connection as good as a plain answer does."""

    async def handler(got: Got, line: Line) -> None:
        if not got.json.get("stream"):
            await ok(got, line)
            return
        await line.head(200, SSE)
        await line.chunk(event("x", finish="stop") + DONE)
        await line.end()

    async with scene(handler, health={"interval": 600}) as (upstream, gate), client(gate.url):
        before = upstream.connections
        for asked in (CHAT, STREAM, CHAT, STREAM):
            assert (await gate.client.post(CHAT_PATH, json=asked)).status_code == 200

        assert upstream.connections - before == 1
