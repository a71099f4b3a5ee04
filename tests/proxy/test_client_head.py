"""A head that comes again is known by its bytes, and means what it would mean if it were parsed anew."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.client_connection import ClientConnection
from proxy.client_head import KEPT, LONGEST, Head, Heads, Target
from proxy.client_parser import ClientParser, Listener
from tests.proxy.harness import Got, Line, engine, gateway, one_backend
from tests.proxy.test_client_connection import echo, read_answer, serving

RAW = b"POST /v1/x?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nAuthorization: Bearer k\r\n\r\n"


class Parsed:
    """A head as llhttp reads it."""

    def __init__(self, raw: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.feed_data(raw)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def head(self, raw: bytes) -> Head:
        made = Head(self.parser.get_method().decode(), Target(self.url), self.parser.get_http_version(), self.headers,
                    self.parser.should_keep_alive())  # fmt: skip
        made.keep(raw)
        return made


def head(raw: bytes = RAW) -> Head:
    return Parsed(raw).head(raw)


def test_the_same_head_is_itself() -> None:
    known = head()

    assert known.again(RAW + b"body") == len(RAW)
    assert known.repeated(RAW + b"body") is known


@given(length=st.integers(0, 10**15 - 1), body=st.binary(max_size=40))
def test_another_length_is_as_if_parsed(length: int, body: bytes) -> None:
    raw = RAW.replace(b"12", b"%d" % length)
    known = head()
    known.reading = "what was found in it"

    assert known.again(raw + body) == len(raw)
    repeated, parsed = known.repeated(raw + body), head(raw)
    assert repeated.headers == parsed.headers
    assert repeated.names == parsed.names
    assert repeated.length == length
    assert repeated.scope() == parsed.scope()
    assert repeated.reading == known.reading
    assert (repeated.before, repeated.after) == (parsed.before, parsed.after)


@given(at=st.integers(0, len(RAW) - 1), byte=st.integers(0, 255))
def test_no_byte_may_differ_but_a_digit_of_the_length(at: int, byte: int) -> None:
    changed = RAW[:at] + bytes([byte]) + RAW[at + 1 :]
    digits = RAW.find(b"12")
    same = changed == RAW or (at in (digits, digits + 1) and chr(byte) in "0123456789")

    assert bool(head().again(changed)) == same


@pytest.mark.parametrize("cut", range(len(RAW)))
def test_a_part_is_not_it(cut: int) -> None:
    assert head().again(RAW[:cut]) == 0


@pytest.mark.parametrize("told", [b"", b"-1", b"+1", b"1 ", b" 1", b"1,1", b"1" * 16, b"0x1", b"1\n"])
def test_what_is_no_plain_length_is_parsed(told: bytes) -> None:
    assert head().again(RAW.replace(b"12", told)) == 0


@pytest.mark.parametrize(
    "raw",
    [
        RAW.replace(b"HTTP/1.1", b"HTTP/1.0"),
        RAW.replace(b"Host: h", b"Connection: close"),
        RAW.replace(b"Host: h", b"Expect: 100-continue"),
        RAW.replace(b"Content-Length: 12", b"Transfer-Encoding: chunked"),
        RAW.replace(b"Content-Length: 12\r\n", b""),
        b"\r\n" + RAW,
    ],
    ids=["1.0", "closes", "expects", "chunks", "no length", "a line before"],
)
def test_some_are_always_parsed(raw: bytes) -> None:
    assert head(raw).before == b""


def test_a_header_that_quotes_a_length_does_no_harm() -> None:
    raw = RAW.replace(b"Host: h", b"Note: content-length: 99")

    assert head(raw).again(raw) == len(raw)
    assert head(raw).length == 12


# -- over a connection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
async def test_bodies_behind_a_repeated_head_come_whatever_the_cut(size: int) -> None:
    bodies = [b"", b"a", b"x" * 1000, b"POST / HTTP/1.1\r\n\r\n", b"", b"y" * 70_000, b"z" * 12]
    sent = b"".join(RAW.replace(b"12", b"%d" % len(body)) + body for body in bodies)
    async with serving(echo) as connect:
        reader, writer = await connect()
        writer.write(RAW + b"x" * 12)
        await read_answer(reader)  # from here on the head is known

        async def send() -> None:
            for at in range(0, len(sent), size):
                writer.write(sent[at : at + size])
                await writer.drain()
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        answers = [(await read_answer(reader))[1] for _ in bodies]
        await sending

    assert answers == bodies


async def test_a_head_between_two_of_the_same_is_parsed() -> None:
    other = b"GET /y HTTP/1.1\r\nhost: h\r\n\r\n"
    chunked = b"POST /z HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with serving(echo) as connect:
        reader, writer = await connect()
        again = [(RAW + letter * 12, letter * 12) for letter in (b"x", b"y", b"z", b"w")]
        for sent, wanted in [*again[:2], (other, b""), again[2], (chunked, b"abc"), again[3]]:
            writer.write(sent)
            assert (await read_answer(reader))[1] == wanted


async def test_a_client_that_leaves_in_a_repeated_body_is_noticed() -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            if not message["more_body"]:
                await echo(scope, _once(message), send)
                return
        left.set()

    async with serving(app) as connect:
        reader, writer = await connect()
        writer.write(RAW + b"x" * 12)
        await read_answer(reader)
        writer.write(RAW + b"x")
        await writer.drain()
        writer.transport.abort()
        async with asyncio.timeout(60):
            await left.wait()


def _once(message: Any) -> Any:
    async def receive() -> Any:
        return message

    return receive


async def test_what_was_found_in_a_head_holds_for_that_head_alone() -> None:
    """Another key, another id, another origin behind a known head: each is looked at anew."""

    async def answer(_: Got, line: Line) -> None:
        await line.reply(
            200, json.dumps({"id": "c", "object": "chat.completion", "model": "up", "choices": []}).encode()
        )

    body = json.dumps({"model": "pub", "messages": []}).encode()

    def request(key: str, more: str = "") -> bytes:
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n{more}"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    settings = {"server": {"api_keys": ["sk-one"]}}
    async with engine(answer) as upstream, gateway(one_backend(upstream.root) | settings) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rpartition(":")[2]))
        said = []
        for sent in (
            request("sk-one"), request("sk-one"), request("sk-two"), request("sk-two"), request("sk-one"),
            request("sk-one", "x-request-id: mine\r\n"), request("sk-one", "x-request-id: mine\r\n"), request("sk-one"),
            request("sk-one", "origin: http://localhost\r\n"), request("sk-one", "origin: http://else.example\r\n"),
        ):  # fmt: skip
            writer.write(sent)
            told, _ = await read_answer(reader)
            lines = told.split(b"\r\n")
            ids = [line[14:] for line in lines if line.startswith(b"x-request-id: ")]
            said.append((int(lines[0][9:12]), ids[0], b"access-control-allow-origin" in told))
        writer.close()

    assert [status for status, _, _ in said] == [200, 200, 401, 401, 200, 200, 200, 200, 200, 200]
    ids = [one for _, one, _ in said]
    assert ids[5] == ids[6] == b"mine"
    assert len(set(ids)) == len(ids) - 1, "every other request has an id of its own"
    assert [seen for _, _, seen in said] == [False] * 8 + [True, False]


# -- between connections -------------------------------------------------------------------------------------------


@given(length=st.integers(0, 10**15 - 1), lower=st.booleans())
def test_another_connection_knows_it_too(length: int, lower: bool) -> None:
    raw = RAW.replace(b"Content-Length", b"content-length") if lower else RAW
    heads = Heads()
    heads.keep(known := head(raw))

    found = heads.find(raw.replace(b"12", b"%d" % length) + b"body")
    assert found is known
    assert heads.find(raw.replace(b"Bearer k", b"Bearer l")) is None
    assert heads.find(raw[:-1]) is None


def test_only_so_many_are_known() -> None:
    heads = Heads()
    raws = [RAW.replace(b"Bearer k", b"Bearer %d" % number) for number in range(KEPT + 5)]
    for raw in raws:
        heads.keep(head(raw))
    long = RAW.replace(b"Bearer k", b"x" * LONGEST)
    heads.keep(head(long))

    assert [heads.find(raw) is not None for raw in raws] == [False] * 5 + [True] * KEPT
    assert heads.find(long) is None


async def test_a_head_that_another_connection_sent_is_answered_alike() -> None:
    heads = Heads()
    connection = partial(ClientConnection, heads=heads)
    async with serving(echo, connection) as connect:
        for number in range(3):
            reader, writer = await connect()
            writer.write(RAW + b"%012d" % number)
            assert (await read_answer(reader))[1] == b"%012d" % number

    assert heads.find(RAW) is not None


async def test_what_differs_in_each_request_pushes_nothing_out() -> None:
    """Only a connection's first head is offered to others: later ones with an id of their own would fill the table."""
    heads = Heads()
    async with serving(echo, partial(ClientConnection, heads=heads)) as connect:
        reader, writer = await connect()
        for number in range(KEPT + 5):
            writer.write(RAW.replace(b"Host: h", b"X-Request-Id: %d" % number) + b"x" * 12)
            await read_answer(reader)
        other, to_other = await connect()
        for sent in (RAW, RAW.replace(b"Host: h", b"X-Request-Id: 0")):
            to_other.write(sent + b"y" * 12)
            assert (await read_answer(other))[1] == b"y" * 12

    assert heads.find(RAW.replace(b"Host: h", b"X-Request-Id: 0")) is not None
    assert heads.find(RAW) is not None
    assert heads.find(RAW.replace(b"Host: h", b"X-Request-Id: 7")) is None


async def test_two_kinds_of_requests_in_turn_are_both_known() -> None:
    """An embedding for each question, say: the last head is not the only one that may come again."""
    heads = Heads()
    second = RAW.replace(b"/v1/x", b"/v1/y")
    parser = ClientParser(Listener(), heads)
    for sent in (RAW, second):
        heads.keep(head(sent))
    for sent in (RAW, second, RAW, second):
        parser.feed(sent + b"x" * 12)

    assert parser._heads == 0, "llhttp had nothing to do"
