"""Connections to engines by themselves: where a base URL leads, which connection a request gets, what ends an answer.
How failures reach a client is in `tests/faults`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from proxy.connection import ConnectFailed, ConnectionLost, UpstreamTimeout
from proxy.exchange import Exchange
from proxy.transport import IDLE_CONNECTIONS, Connections, Limits, Origin, Transport
from tests.proxy.harness import PATIENCE, until

REQUEST = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Origin]:
    """`serve` handles each connection, which it leaves to be closed here."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield Origin.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def transport(limits: Limits = Limits()) -> AsyncIterator[Transport]:  # noqa: B008 - frozen
    made = Transport(limits)
    try:
        yield made
    finally:
        made.close()


def answering(*answers: bytes) -> Serve:
    """Each request of a connection gets the next answer; then the connection is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

    return serve


async def call(made: Transport, origin: Origin) -> tuple[int, bytes]:
    exchange = Exchange()
    exchange.send(REQUEST, made.kept(origin) or await made.connect(origin))
    await exchange.head()
    return exchange.status, await exchange.read(10_000)


# -- base URLs ---------------------------------------------------------------------------------------------------

ROOTS: list[tuple[str, tuple[str, int, bool, bytes, str]]] = [
    ("http://10.0.0.5:8000", ("10.0.0.5", 8000, False, b"10.0.0.5:8000", "")),
    ("http://host", ("host", 80, False, b"host", "")),
    ("https://host/a/b/", ("host", 443, True, b"host", "/a/b")),
    ("http://[::1]:8080", ("::1", 8080, False, b"[::1]:8080", "")),
    ("http://[::1]", ("::1", 80, False, b"[::1]", "")),
    ("HTTPS://Host:444", ("host", 444, True, b"host:444", "")),
]


@pytest.mark.parametrize(("root", "expected"), ROOTS)
def test_where_a_base_url_leads(root: str, expected: tuple[str, int, bool, bytes, str]) -> None:
    origin = Origin.parse(root)

    assert (origin.host, origin.port, origin.tls, origin.authority, origin.path) == expected


@pytest.mark.parametrize("root", ["ftp://host", "host:80", "http://", "", "unix:/x"])
def test_what_is_no_base_url(root: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        Origin.parse(root)


# -- where an answer ends ----------------------------------------------------------------------------------------

# what an engine says -> the body, and whether the connection may be kept
ENDS: dict[str, tuple[bytes, bytes, bool]] = {
    "length": (OK, b"hi", True),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", b"hi", True),
    "trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx: y\r\n\r\n", b"hi", True),
    "the connection's end": (b"HTTP/1.1 200 OK\r\n\r\nhi", b"hi", False),
    "length, then close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi", False),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hi", True),
    "103 first": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"hi", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
}


@pytest.mark.parametrize(("said", "body", "kept"), ENDS.values(), ids=ENDS)
async def test_the_end_of_an_answer(said: bytes, body: bytes, kept: bool) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        if kept:
            await reader.read()

    async with serving(once) as origin, transport() as made:
        assert await call(made, origin) == (200, body)
        assert made.open_to(origin) == int(kept)


CUT: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le", "before the answer was complete"),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", "before the answer was complete"),
    "half the chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", "before the answer was"),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
    "a length that is none": (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "not HTTP"),
}


@pytest.mark.parametrize(("said", "why"), CUT.values(), ids=CUT)
async def test_an_answer_that_breaks_off(said: bytes, why: str) -> None:
    async with serving(answering(said)) as origin, transport() as made:
        with pytest.raises(ConnectionLost, match=re.escape(why)) as caught:
            await call(made, origin)

        assert caught.value.reached
        assert not caught.value.stale
        assert made.open_to(origin) == 0


# -- which connection --------------------------------------------------------------------------------------------


async def test_a_kept_connection_is_used_again() -> None:
    seen: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        await answering(OK, OK, OK)(reader, writer)
        await reader.read()

    async with serving(serve) as origin, transport() as made:
        for _ in range(3):
            assert await call(made, origin) == (200, b"hi")
        assert len(seen) == 1


async def test_a_kept_connection_that_broke_unseen_is_stale() -> None:
    """The engine closes it in the very moment in which it is used again."""
    async with serving(answering(OK, b"")) as origin, transport() as made:
        await call(made, origin)
        with pytest.raises(ConnectionLost) as caught:
            await call(made, origin)

        assert caught.value.stale


async def test_one_call_at_a_time() -> None:
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(OK)
        await reader.read()

    async with serving(slow) as origin, transport() as made:
        calls = [asyncio.ensure_future(call(made, origin)) for _ in range(3)]
        await until(lambda: made.open_to(origin) == 3)
        release.set()

        assert await asyncio.gather(*calls) == [(200, b"hi")] * 3


async def test_giving_up_closes_the_connection_at_once() -> None:
    closed = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with serving(watch) as origin, transport() as made:
        exchange = Exchange()
        exchange.send(REQUEST, made.kept(origin) or await made.connect(origin))
        exchange.close()

        await asyncio.wait_for(closed.wait(), PATIENCE)
        assert made.open_to(origin) == 0


async def test_no_more_are_kept_than_fit() -> None:
    async def hold(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(hold) as origin:
        connections = Connections(origin, Limits(), None)  # type: ignore[arg-type]  # no TLS here
        one = await connections.connect()
        for _ in range(IDLE_CONNECTIONS):
            connections.keep(one)
        other = await connections.connect()
        connections.keep(other)

        assert not other.usable
        assert connections.open == IDLE_CONNECTIONS
        connections.close()


# -- time limits -------------------------------------------------------------------------------------------------


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await reader.read()


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi")
    await reader.read()


@pytest.mark.parametrize(("serve", "why"), [(silent, "no answer within 7 s"), (half, "no further data within 9 s")])
async def test_silence(serve: Serve, why: str) -> None:
    limits = Limits(response=7, idle=9)
    async with serving(serve) as origin:
        connections = Connections(origin, limits, None)  # type: ignore[arg-type]
        exchange = Exchange()
        connection = await connections.connect()
        exchange.send(REQUEST, connection)
        if serve is half:
            await exchange.head()
            assert await exchange.next() == b"hi"
        limit = limits.idle if serve is half else limits.response
        connections.sweep(connection.touched + limit)
        assert connections.open == 1, "not a moment before the limit"
        connection.pause()
        connections.sweep(connection.touched + limit + 0.1)
        assert connections.open == 1, "a slow client is not the engine's fault"
        now = connection.touched + limit + 0.1
        connection._paused = False
        connections.sweep(now)

        with pytest.raises(UpstreamTimeout, match=why):
            await exchange.next() if serve is half else await exchange.head()
        assert connections.open == 0


async def test_unused_connections_are_closed_in_time() -> None:
    async with serving(silent) as origin:
        connections = Connections(origin, Limits(keep=4), None)  # type: ignore[arg-type]
        connection = await connections.connect()
        connections.keep(connection)
        connections.sweep(connection.touched + 4)
        assert connections.open == 1
        connections.sweep(connection.touched + 4.1)

        assert connections.open == 0
        assert connections.take() is None


# -- no connection -----------------------------------------------------------------------------------------------


async def test_refused() -> None:
    async with serving(silent) as origin:
        pass
    async with transport() as made:
        with pytest.raises(ConnectFailed, match=rf"127\.0\.0\.1:{origin.port}: connection refused") as caught:
            await call(made, origin)

        assert not caught.value.reached


async def test_no_such_host() -> None:
    async with transport() as made:
        with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid:80: "):
            await call(made, Origin.parse("http://no-such-host.invalid"))


async def test_no_tls_there() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(speak) as origin, transport() as made:
        with pytest.raises(ConnectFailed, match="TLS with"):
            await call(made, Origin.parse(f"https://127.0.0.1:{origin.port}"))
