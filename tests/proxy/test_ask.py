"""Questions of the control plane, over real sockets: what is sent, what is read, and every way to get no answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from proxy.ask import MAX_BYTES, Asker, Unanswered, asking
from tests.proxy.harness import until

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n"


class Server:
    """Says the same to each connection, and keeps what it was asked."""

    def __init__(self, answer: bytes, *, close: bool = True) -> None:
        self.asked: list[bytes] = []
        self.root = ""
        self._answer = answer
        self._close = close

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            told = head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]
            self.asked.append(head + await reader.readexactly(int(told or b"0")))
            writer.write(self._answer)
            await writer.drain()
            if not self._close:
                await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def answering(answer: bytes, *, close: bool = True) -> AsyncIterator[Server]:
    server = Server(answer, close=close)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.root = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


async def no_answer(asker: Asker, root: str, key: str | None = None) -> str:
    with pytest.raises(Unanswered) as caught:
        await asker.ask(root, "/x", key)
    return str(caught.value)


async def test_what_is_sent() -> None:
    async with answering(OK + b'{"a":1}') as server:
        with asking() as asker:
            told = await asker.ask(server.root + "/base", "/v1/models?x=1", "sk-ünicode")
            await asker.ask(server.root, "/api/show", None, b'{"model":"m"}')
    got, posted = server.asked
    assert (told.status, told.header(b"content-type"), told.header(b"server")) == (200, "application/json", "")
    assert (told.body, told.value) == (b'{"a":1}', {"a": 1})
    assert got.startswith(b"GET /base/v1/models?x=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nauthorization: Bearer " + "sk-ünicode".encode() + b"\r\n" in got
    assert b"\r\naccept-encoding: identity\r\n" in got, "so that the limit counts what is kept"
    assert b"content-length" not in got
    assert posted.startswith(b"POST /api/show HTTP/1.1\r\n")
    assert posted.endswith(b'content-length: 13\r\naccept-encoding: identity\r\nconnection: close\r\n\r\n{"model":"m"}')
    assert b"authorization" not in posted


async def test_what_is_no_json() -> None:
    async with answering(OK + b"<html/>") as server:
        with asking() as asker:
            assert (await asker.ask(server.root, "/", None)).value is None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n[1,2]",
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[1,2]",
    ],
    ids=["chunks", "until the end", "a hint before it"],
)
async def test_framing(answer: bytes) -> None:
    async with answering(answer) as server:
        with asking() as asker:
            assert (await asker.ask(server.root, "/", None)).value == [1, 2]


async def test_no_cookie_is_kept_and_no_redirect_followed() -> None:
    head = b"HTTP/1.1 302 Found\r\nset-cookie: who=alice; path=/\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n"
    async with answering(head) as server:
        with asking() as asker:
            for _ in range(2):
                assert (await asker.ask(server.root, "/a", None)).status == 302
    assert [one.split(b" ")[1] for one in server.asked] == [b"/a", b"/a"]
    assert not any(b"cookie" in one.lower() for one in server.asked)


@pytest.mark.parametrize("close", [True, False])
async def test_no_connection_is_left(close: bool) -> None:
    """Also where the server would keep it."""
    async with answering(OK + b'{"a":1}', close=close) as server:
        with asking() as asker:
            await asker.ask(server.root, "/", None)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # the server's has seen the end


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("http://no-such-host.invalid", "host name not found"),
        ("localhost:8000", "base_url must begin with http:// or https://"),
        ("http://[::1", "base_url is not a URL"),
    ],
)
async def test_bad_base_urls(root: str, said: str) -> None:
    with asking() as asker:
        assert await no_answer(asker, root) == said


async def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with asking() as asker:
        assert await no_answer(asker, f"http://127.0.0.1:{port}") == "connection refused"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", OK + b"{"], ids=["nothing", "not HTTP", "half"])
async def test_broken_answers(answer: bytes) -> None:
    async with answering(answer) as server:
        with asking() as asker:
            assert await no_answer(asker, server.root) == "it closed the connection or does not answer in HTTP"


async def test_tls_where_there_is_none() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        with asking() as asker:
            said = await no_answer(asker, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert said == "TLS failed: check http:// or https:// in base_url, and its certificate"


async def test_reading_is_bounded() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_BYTES + 1)) as server:
        with asking() as asker:
            assert await no_answer(asker, server.root) == "answered with more than 4 MiB"


@pytest.mark.parametrize("key", ["a\r\nx: y", "a\x00", "\x7f"])
async def test_a_key_that_is_no_header(key: str) -> None:
    async with answering(OK + b'{"a":1}') as server:
        with asking() as asker:
            said = await no_answer(asker, server.root, key)
    assert said == "the api_key can't stand in a header"
    assert not server.asked
