"""One call from the reading side: pieces in order, back-pressure, and what a reader hears of a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proxy.connection import ConnectionLost
from proxy.exchange import HOLD, Exchange, TooLong

pytestmark = pytest.mark.interpreted  # `Wire` is no Connection


class Taking:
    """A consumer. (It inherits from none: where that is compiled it can't be.)"""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self.take = take


class Wire:
    """Stands for a connection: says what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loop = asyncio.get_running_loop()

    def start(self, _request: bytes, _receiver: Exchange) -> None: ...

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def close(self) -> None:
        self.asked.append("close")


def exchange() -> tuple[Exchange, Wire]:
    wire = Wire()
    made = Exchange()
    made.send(b"", wire)  # type: ignore[arg-type]
    return made, wire


LOST = ConnectionLost("gone")


async def test_the_head_is_awaited() -> None:
    made, _ = exchange()
    waiting = asyncio.ensure_future(made.head())
    await asyncio.sleep(0)
    assert not waiting.done()
    made.on_head(404, [(b"content-type", b"text/plain")], {b"content-type": b"text/plain"})
    await waiting

    assert (made.status, made.content_type) == (404, "text/plain")


async def test_pieces_come_together_and_end() -> None:
    made, _ = exchange()
    made.on_data(b"a")
    made.on_data(b"b")
    assert await made.next() == b"ab"
    waiting = asyncio.ensure_future(made.next())
    await asyncio.sleep(0)
    made.on_data(b"c")
    assert await waiting == b"c"
    made.on_data(b"d")
    made.on_end()

    assert [await made.next(), await made.next(), await made.next()] == [b"d", b"", b""]


async def test_what_came_before_a_failure_is_not_lost() -> None:
    made, _ = exchange()
    made.on_data(b"a")
    made.on_lost(LOST)

    assert await made.next() == b"a"
    with pytest.raises(ConnectionLost):
        await made.next()


@pytest.mark.parametrize("verb", ["head", "next", "pump"])
async def test_a_failure_wakes_whoever_waits(verb: str) -> None:
    made, _ = exchange()
    doing = {"head": made.head, "next": made.next, "pump": lambda: made.pump(Taking(lambda _: None))}[verb]
    waiting = asyncio.ensure_future(doing())
    await asyncio.sleep(0)
    made.on_lost(LOST)

    with pytest.raises(ConnectionLost):
        await waiting


@pytest.mark.parametrize(("limit", "good"), [(4, True), (3, False)])
async def test_a_limit(limit: int, good: bool) -> None:
    made, _ = exchange()
    made.on_data(b"ab")
    made.on_data(b"cd")
    made.on_end()
    if good:
        assert await made.read(limit) == b"abcd"
    else:
        with pytest.raises(TooLong):
            await made.read(limit)


async def test_nobody_reads() -> None:
    """What nobody asked for is bounded: the engine has to wait."""
    made, wire = exchange()
    made.on_data(b"x" * HOLD)
    assert wire.asked == []
    made.on_data(b"x")
    assert wire.asked == ["pause"]
    assert len(await made.next()) == HOLD + 1
    waiting = asyncio.ensure_future(made.next())
    await asyncio.sleep(0)

    assert wire.asked == ["pause", "resume"]
    made.on_end()
    assert await waiting == b""


async def test_pump_hands_on_inside_the_callback() -> None:
    made, _ = exchange()
    got: list[bytes] = []
    made.on_data(b"a")
    pumping = asyncio.ensure_future(made.pump(Taking(got.append)))
    await asyncio.sleep(0)
    assert got == [b"a"]
    made.on_data(b"b")
    assert got == [b"a", b"b"], "no turn of the loop between"
    made.on_end()

    await pumping


async def test_a_consumer_that_fails_ends_the_call() -> None:
    made, wire = exchange()

    def consume(_: bytes) -> None:
        raise KeyError("boom")

    pumping = asyncio.ensure_future(made.pump(Taking(consume)))
    await asyncio.sleep(0)
    made.on_data(b"a")

    with pytest.raises(KeyError):
        await pumping
    assert wire.asked[-1] == "close"


async def test_finish_ends_a_pump_and_the_connection() -> None:
    made, wire = exchange()
    pumping = asyncio.ensure_future(made.pump(Taking(lambda _: made.finish())))
    await asyncio.sleep(0)
    made.on_data(b"a")
    await pumping

    assert wire.asked[-1] == "close"


async def test_closing_is_harmless_afterwards() -> None:
    made, wire = exchange()
    made.on_end()
    made.close()
    assert wire.asked == [], "the connection is the next call's"
    other, wire = exchange()
    other.close()
    other.close()

    assert wire.asked == ["close"]


async def test_a_call_that_is_sent_once_more() -> None:
    made, _ = exchange()
    made.on_lost(LOST)
    wire = Wire()
    made.send(b"", wire)  # type: ignore[arg-type]
    made.on_head(200, [], {})
    await made.head()
    made.close()

    assert wire.asked == ["close"]
