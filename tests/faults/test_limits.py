"""Nothing is held without a bound: slow readers, large bodies and answers, queues."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.call import Call, clock
from proxy.client_head import Head, Target
from proxy.client_request import ClientRequest
from proxy.exchange import HOLD, Exchange
from proxy.relay import Client as Sender
from proxy.sweep import Sweep
from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    REPLY,
    SSE,
    STREAM,
    Leftovers,
    backend,
    client,
    event,
    ok,
    replicas,
    scene,
    strikes,
)
from tests.proxy.harness import Got, Line, until

MIB = 1024 * 1024
KERNEL = 24 * MIB  # what the buffers of two loopback connections hold at most

BIG = {
    "events": (CHAT_PATH, STREAM, "text/event-stream", event("x" * 65_000), event("x" * 65_000, "pub")),
    "audio": ("/v1/audio/speech", {"model": "pub", "input": "x"}, "audio/wav", bytes(range(256)) * 256, None),
}


@pytest.mark.parametrize("case", BIG.values(), ids=BIG)
async def test_a_client_that_does_not_read_stops_the_engine(case: tuple[str, dict, str, bytes, bytes | None]) -> None:
    path, asked, kind, piece, seen = case
    count = 64 * MIB // len(piece)
    sent = 0

    async def handler(_: Got, line: Line) -> None:
        nonlocal sent
        await line.head(200, {"content-type": kind})
        for _ in range(count):
            await line.chunk(piece)
            sent += len(piece)
        if kind == SSE["content-type"]:
            await line.chunk(event("end", finish="stop") + b"data: [DONE]\n\n")
        await line.end()

    async with scene(handler) as (upstream, gate), client(gate.url, receive_buffer=16_384) as one:
        await one.send(path, asked)
        await upstream.arrived.wait()
        still, before = 0, -1
        while still < 20:  # it stands, rather than being slow
            await asyncio.sleep(0.01)
            still, before = (still + 1 if sent == before else 0), sent
        assert sent < KERNEL

        assert (await one.answer())[0] == 200
        got = await one.rest()
        wanted = (seen or piece) * count
        assert got[: len(wanted)] == wanted
        assert got[len(wanted) :] == (
            event("end", "pub", finish="stop") + b"data: [DONE]\n\n" if kind == SSE["content-type"] else b""
        )


class Slow:
    """A connection whose client reads nothing, from the first write on, until it has `caught_up`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.slow = False
        self.sent: list[bytes] = []
        self._read = asyncio.Event()
        self.request = ClientRequest(self, Head("POST", Target(b"/"), "1.1", [], True))

    def caught_up(self) -> None:
        self.slow = False
        self._read.set()
        if self.request.resumed is not None:
            self.request.resumed()

    def put(self, data: bytes) -> None:
        self.slow = not self._read.is_set()
        self.sent.append(data)

    async def drained(self) -> None:
        await self._read.wait()

    def want_body(self) -> None: ...

    def head_lines(self) -> bytes:
        return b"\r\n"

    def answered(self, request: ClientRequest) -> None: ...

    @property
    def body(self) -> bytes:
        """What was sent, without its head and the sizes of its chunks."""
        chunks = b"".join(self.sent).partition(b"\r\n\r\n")[2]
        found = b""
        while chunks:
            size, _, chunks = chunks.partition(b"\r\n")
            found, chunks = found + chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
        return found


def sender(slow: Slow) -> Sender:
    return Sender(Call(b"id", "POST", "/", "", clock()), slow.request)


class Tap:
    """In the place of a connection: is it read from?"""

    def __init__(self) -> None:
        self.open = True
        self.loop = asyncio.get_running_loop()

    def start(self, _request: bytes, _receiver: Exchange) -> None: ...

    def pause(self) -> None:
        self.open = False

    def resume(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False


@pytest.mark.interpreted
async def test_what_was_held_already_counts_too() -> None:
    """A client that is slow when the pump begins: reading goes on only when it has drained."""
    slow = Slow()
    one = sender(slow)
    exchange = Exchange()
    tap = Tap()
    exchange.send(b"", tap)  # type: ignore[arg-type]
    exchange.on_data(b"x" * (HOLD + 1))
    assert not tap.open
    one.exchanges = (exchange,)
    one.head("text/plain", [])
    one.write(b"1")
    consumer: Any = SimpleNamespace(take=one.write)
    pumping = asyncio.create_task(exchange.pump(consumer))
    await asyncio.sleep(0)
    assert not tap.open
    exchange.on_data(b"y")
    assert not tap.open
    slow.caught_up()
    await until(lambda: tap.open)
    exchange.on_end()
    await pumping
    await one.finish()

    assert slow.body == b"1" + b"x" * (HOLD + 1) + b"y"


@pytest.mark.interpreted
async def test_comments_do_not_pile_up_before_a_slow_client() -> None:
    slow = Slow()
    one = sender(slow)
    pulse = Sweep(0.001)
    pulse.add(one.beat, one.loop)
    one.head("text/event-stream", [])
    for _ in range(4):
        one.write(b"data: x\n\n")
    ticks = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, ticks.set_result, None)
    await ticks
    held = len(slow.sent)
    finishing = asyncio.create_task(one.finish())
    slow.caught_up()
    await finishing
    pulse.discard(one.beat)

    assert held <= 4
    assert slow.sent[-1] == b"0\r\n\r\n"


@pytest.mark.interpreted
async def test_no_comment_after_the_end() -> None:
    """The end waits for a slow client, and a comment must not slip behind it."""
    slow = Slow()
    one = sender(slow)
    one.head("text/event-stream", [])
    one.write(b"data: x\n\n")
    pulse = Sweep(0.001)
    pulse.add(one.beat, one.loop)
    finishing = asyncio.create_task(one.finish())
    ticks = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, ticks.set_result, None)
    await ticks
    slow.caught_up()
    await finishing
    for _ in range(5):
        await asyncio.sleep(0)
    pulse.discard(one.beat)

    assert slow.body == b"data: x\n\n"
    assert slow.sent[-1] == b"0\r\n\r\n"


# -- bodies -------------------------------------------------------------------------------------------------------


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async with scene(ok, server={"max_body": 2000}) as (upstream, gate), client(gate.url) as one:
        await one.head(CHAT_PATH, {"content-length": "2001"})
        status, headers = await one.answer()
        body = json.loads(await one.reader.readexactly(int(headers["content-length"])))

        assert (status, body["error"]["code"]) == (413, "request_too_large")
        assert "2000" in body["error"]["message"]
        assert not upstream.got


async def test_a_chunked_body_that_grows_too_large() -> None:
    async with scene(ok, server={"max_body": 2000}) as (upstream, gate), client(gate.url) as one:
        await one.head(CHAT_PATH, {"transfer-encoding": "chunked"})
        one.writer.write((b"400\r\n" + b" " * 1024 + b"\r\n") * 2)
        status, headers = await one.answer()
        body = json.loads(await one.reader.readexactly(int(headers["content-length"])))

        assert (status, body["error"]["code"]) == (413, "request_too_large")
        assert not upstream.got


async def test_a_body_of_just_the_limit() -> None:
    body = json.dumps(CHAT).encode().ljust(2000)
    async with scene(ok, server={"max_body": 2000}) as (_, gate):
        assert (await gate.client.post(CHAT_PATH, content=body)).status_code == 200
        assert (await gate.client.post(CHAT_PATH, content=body + b" ")).status_code == 413


async def test_a_chunked_body_is_put_together() -> None:
    body = json.dumps(CHAT).encode()

    async def pieces() -> Any:
        for at in range(0, len(body), 5):
            yield body[at : at + 5]
            await asyncio.sleep(0)

    async with scene(ok) as (upstream, gate):
        assert (await gate.client.post(CHAT_PATH, content=pieces())).status_code == 200
        assert upstream.got[0].json == CHAT | {"model": "up"}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
async def test_an_answer_that_is_too_long(kind: str, chunked: bool) -> None:
    endless = b'{"model":"up","x":"' + b"y" * 40_000

    async def handler(_: Got, line: Line) -> None:
        headers = {"content-type": "application/json"} | ({} if chunked else {"content-length": "9000000"})
        await line.head(200, headers, chunked=chunked)
        if chunked:
            await line.chunk(endless)
        else:
            line.writer.write(endless)
        await line.closed.wait()

    async with scene(handler, kind=kind, upstream={"max_reply": 20_000}) as (upstream, gate):
        leftovers = Leftovers(gate)
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_invalid_response")
        assert "upstream.max_reply" in reply.json()["error"]["message"]
        await upstream.lines[-1].closed.wait()
        await gate.client.aclose()
        await leftovers.none()
        assert strikes(gate) == 0


@pytest.mark.parametrize("first", [True, False])
async def test_a_large_answer_passes_whole_under_the_public_name(first: bool) -> None:
    data = [{"object": "embedding", "index": n, "embedding": [n + 0.125] * 1000} for n in range(800)]
    usage = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    answer: dict[str, Any] = {"object": "list", "data": data, **usage}
    answer = {"model": "up"} | answer if first else answer | {"model": "up"}
    body = json.dumps(answer).encode()
    assert len(body) > 5 * MIB

    async def handler(_: Got, line: Line) -> None:
        await line.reply(200, body)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post("/v1/embeddings", json={"model": "pub", "input": "x"})

        assert reply.content == body.replace(b'"model": "up"', b'"model": "pub"')
        (line,) = await gate.logged()
        assert line["prompt_tokens"] == 7


# -- places -------------------------------------------------------------------------------------------------------


async def test_first_come_first_served_and_no_more_than_fit() -> None:
    go: asyncio.Queue[None] = asyncio.Queue()

    async def handler(_: Got, line: Line) -> None:
        await go.get()
        await line.reply(200, REPLY)

    async with scene(handler, backend={"max_in_flight": 1, "max_queue": 2}) as (upstream, gate):
        calls = []
        for n in range(3):
            calls.append(asyncio.create_task(gate.client.post(CHAT_PATH, json=CHAT | {"n": n})))
            await until(lambda n=n: len(backend(gate).places.queue) == n and len(upstream.got) == 1)  # type: ignore[misc]
        refused = await gate.client.post(CHAT_PATH, json=CHAT | {"n": 3})

        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for _ in calls:
            go.put_nowait(None)
        assert [(await call).status_code for call in calls] == [200, 200, 200]
        assert [got.json["n"] for got in upstream.got] == [0, 1, 2]
        assert strikes(gate) == 0


async def test_a_waiter_that_leaves_frees_its_place() -> None:
    go: asyncio.Queue[None] = asyncio.Queue()

    async def handler(_: Got, line: Line) -> None:
        await go.get()
        await line.reply(200, REPLY)

    async with scene(handler, backend={"max_in_flight": 1, "max_queue": 1}) as (upstream, gate):
        first = asyncio.create_task(gate.client.post(CHAT_PATH, json=CHAT | {"n": 0}))
        await upstream.arrived.wait()
        async with client(gate.url) as one:
            await one.send(CHAT_PATH, CHAT | {"n": 1})
            await until(lambda: len(backend(gate).places.queue) == 1)
            assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 429
            one.leave()
            await until(lambda: not backend(gate).places.queue)
        third = asyncio.create_task(gate.client.post(CHAT_PATH, json=CHAT | {"n": 2}))
        await until(lambda: len(backend(gate).places.queue) == 1)
        go.put_nowait(None)
        go.put_nowait(None)

        assert ((await first).status_code, (await third).status_code) == (200, 200)
        assert [got.json["n"] for got in upstream.got] == [0, 2]


async def test_a_failed_call_gives_its_place_back() -> None:
    async def handler(got: Got, line: Line) -> None:
        if got.json.get("n"):
            await line.reply(200, REPLY)
        else:
            line.drop()

    async with scene(handler, backend={"max_in_flight": 1, "max_queue": 0}) as (_, gate):
        for n in (0, 1, 0, 1):
            reply = await gate.client.post(CHAT_PATH, json=CHAT | {"n": n})
            assert reply.status_code == (200 if n else 503)


async def test_the_less_busy_replica_is_asked() -> None:
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.reply(200, REPLY)

    async with replicas(handler, handler) as (a, b, gate):
        calls = [asyncio.create_task(gate.client.post(CHAT_PATH, json=CHAT)) for _ in range(6)]
        await until(lambda: len(a.got) + len(b.got) == 6)
        assert (len(a.got), len(b.got)) == (3, 3)
        go.set()
        assert {(await call).status_code for call in calls} == {200}
