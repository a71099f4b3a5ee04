"""HTTP's chunks: those that come whole need no parser, and what comes out is the same wherever the reads were cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.chunks import whole_chunks
from proxy.connection import Connection
from proxy.exchange import Exchange
from proxy.framing import split_events
from proxy.transport import Connections, Limits, Origin

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BODIES = st.lists(
    st.one_of(st.binary(min_size=1, max_size=20), st.sampled_from([b"x" * 1023, b"x" * 1024, b"y" * 70_000, b"\r\n"])),
    max_size=6,
)


def written(body: bytes, size: bytes = b"%x") -> bytes:
    return size % len(body) + b"\r\n" + body + b"\r\n"


@given(
    bodies=BODIES, rest=st.sampled_from([b"", b"0\r\n\r\n", b"5", b"5\r\nab", b"5;x=y\r\nabcde\r\n", b"g\r\n", b"\r\n"])
)
def test_whole_ones_are_taken_and_the_rest_is_left(bodies: list[bytes], rest: bytes) -> None:
    whole = b"".join(map(written, bodies))

    assert whole_chunks(whole + rest) == (b"".join(bodies), len(whole))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"3", b"3\r", b"3\r\n", b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r", b"3\r\nabcd\r\n", b"0\r\n\r\n",
        b"03\r\nabc\r\n", b" 3\r\nabc\r\n", b"+3\r\nabc\r\n", b"0x3\r\nabc\r\n", b"3 \r\nabc\r\n", b"-3\r\nabc\r\n",
        b"1_0\r\n" + b"a" * 16 + b"\r\n", b"3\nabc\n", b"123456789\r\nabc\r\n", b"57x",
    ],
)  # fmt: skip
def test_what_is_no_plain_whole_chunk_is_left(data: bytes) -> None:
    assert whole_chunks(data) == (b"", 0)


@given(size=st.sampled_from([b"%x", b"%X"]), length=st.integers(1, 5000))
def test_every_size_in_either_case(size: bytes, length: int) -> None:
    data = written(b"z" * length, size)

    assert whole_chunks(data) == (b"z" * length, len(data))


class Wire:
    """An engine's end of no connection."""

    closed = False

    def write(self, _: bytes) -> None: ...

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def read(answer: bytes, cuts: list[int]) -> tuple[bytes, bool]:
    """The body that came of it, and whether the connection is kept."""
    owner = Connections(Origin.parse("http://127.0.0.1:1"), Limits(), lambda: None)  # type: ignore[arg-type,return-value]
    connection = Connection(owner)
    wire: Any = Wire()
    connection.connection_made(wire)
    exchange = Exchange()
    exchange.send(b"", connection)
    edges = [0, *sorted(place % (len(answer) + 1) for place in cuts), len(answer)]
    for start, end in pairwise(edges):
        if start < end:
            connection.data_received(answer[start:end])
    return await exchange.read(10**7), owner.open == 1 and not wire.closed


@given(
    bodies=BODIES,
    sizes=st.lists(st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b"]), min_size=6, max_size=6),
    trailer=st.sampled_from([b"", b"x-more: y\r\n"]),
    cuts=st.lists(st.integers(0, 10**5), max_size=8),
)
@example(bodies=[b"a" * 0x57], sizes=[b"%x"] * 6, trailer=b"", cuts=[len(HEAD), len(HEAD) + 1])
@example(bodies=[b"ab", b"c"], sizes=[b"%x"] * 6, trailer=b"", cuts=[len(HEAD), len(HEAD) + 7, len(HEAD) + 8])
def test_the_same_body_wherever_it_is_cut(
    bodies: list[bytes], sizes: list[bytes], trailer: bytes, cuts: list[int]
) -> None:
    chunks = b"".join(written(body, size) for body, size in zip(bodies, sizes, strict=False))
    answer = HEAD + chunks + b"0\r\n" + trailer + b"\r\n"

    assert asyncio.run(read(answer, cuts)) == (b"".join(bodies), True)


def test_every_cut_of_a_short_one() -> None:
    bodies = [b"a", b"0123456789abcdef0", b"\r\n"]
    answer = HEAD + b"".join(map(written, bodies)) + b"0\r\n\r\n"

    async def all_of_them() -> None:
        for first in range(len(HEAD), len(answer)):
            for second in range(first, len(answer)):
                assert await read(answer, [first, second]) == (b"".join(bodies), True)

    asyncio.run(all_of_them())


@given(
    st.lists(st.sampled_from([b"data: x", b"\n", b"\n\n", b"\r", b"\r\n", b": c", b"event: y\n"]), max_size=12).map(
        b"".join
    )
)
def test_events_split_the_same_with_any_line_end(data: bytes) -> None:
    events = split_events(data)
    plain = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    assert data.startswith(b"".join(events))
    assert [event.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for event in events] == split_events(plain)
    assert all(event.rstrip(b"\n").count(b"\n\n") == 0 or event.startswith(b"\n") for event in split_events(plain))
