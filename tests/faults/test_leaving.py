"""A client that leaves, at every moment of a call: the engine's connection closes at once, nobody is to blame."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from proxy.pool import Backend
from proxy.settings import BackendSettings
from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    PATHS,
    REPLY,
    SSE,
    STREAM,
    Leftovers,
    backend,
    client,
    event,
    left,
    never,
    scene,
    strikes,
)
from tests.proxy.harness import PATIENCE, Got, Line, gateway, one_backend, until

ASKED = {
    "plain": (CHAT_PATH, CHAT),
    "streamed": (CHAT_PATH, STREAM),
    "embeddings": ("/v1/embeddings", {"model": "pub", "input": "hi"}),
    "messages": PATHS["messages"],
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
async def test_during_prefill(asked: tuple[str, dict], kind: str) -> None:
    async with scene(never, kind=kind) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send(*asked)
        await upstream.arrived.wait()
        assert not upstream.lines[-1].closed.is_set()
        one.leave()

        await left(gate, leftovers, upstream)


async def test_after_the_head_before_the_first_event() -> None:
    """As llama-server does it: the head comes at once, the prompt is read afterwards."""
    headed = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        headed.set()
        await line.closed.wait()

    async with scene(handler) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send(CHAT_PATH, STREAM)
        await headed.wait()
        one.leave()

        await left(gate, leftovers, upstream)


@pytest.mark.parametrize("name", PATHS)
async def test_mid_stream(name: str) -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one"))
        await line.closed.wait()

    async with scene(handler) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send(*PATHS[name])
        assert (await one.answer())[0] == 200
        await one.until(b"one")
        one.leave()

        await left(gate, leftovers, upstream)


async def test_after_comments_before_any_answer() -> None:
    async with (
        scene(never, server={"keep_alive_interval": 0.02}) as (upstream, gate),
        client(gate.url) as one,
    ):
        leftovers = Leftovers(gate)
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        await one.until(b": keep-alive")
        one.leave()

        await left(gate, leftovers, upstream)


async def test_inside_audio() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "audio/mpeg"})
        await line.chunk(b"\xff\xfb")
        await line.closed.wait()

    async with scene(handler) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send("/v1/audio/speech", {"model": "pub", "input": "hi", "voice": "x"})
        await one.answer()
        assert await one.piece() == b"\xff\xfb"
        one.leave()

        await left(gate, leftovers, upstream)


async def test_while_not_reading() -> None:
    """The gateway waits for this client rather than for the engine."""
    sent = 0

    async def handler(_: Got, line: Line) -> None:
        nonlocal sent
        await line.head(200, SSE)
        while True:
            await line.chunk(event("x" * 60_000))
            sent += 1

    async with scene(handler) as (upstream, gate), client(gate.url, receive_buffer=4096) as one:
        leftovers = Leftovers(gate)
        await one.send(CHAT_PATH, STREAM)
        await upstream.arrived.wait()
        still, before = 0, -1
        while still < 20:
            await asyncio.sleep(0.01)
            still, before = (still + 1 if sent == before else 0), sent
        one.leave()

        await left(gate, leftovers, upstream)


async def test_while_waiting_for_a_place() -> None:
    async with (
        scene(never, backend={"max_in_flight": 1}) as (upstream, gate),
        client(gate.url) as first,
        client(gate.url) as second,
    ):
        await first.send(CHAT_PATH, CHAT)
        await upstream.arrived.wait()
        leftovers = Leftovers(gate)
        await second.send(CHAT_PATH, STREAM)
        await until(lambda: len(backend(gate).places.queue) == 1)
        second.leave()

        (line,) = await gate.logged()
        assert line["status"] == 499
        await until(lambda: not backend(gate).places.queue)
        assert backend(gate).in_flight == 1
        first.leave()
        assert [one["status"] for one in await gate.logged(2)] == [499, 499]
        await leftovers.none()
        assert len(upstream.got) == 1
        assert strikes(gate) == 0


async def test_all_at_once_with_a_full_queue() -> None:
    async with scene(never, backend={"max_in_flight": 2}) as (upstream, gate), contextlib.AsyncExitStack() as stack:
        leftovers = Leftovers(gate)
        clients = [await stack.enter_async_context(client(gate.url)) for _ in range(12)]
        for one in clients:
            await one.send(CHAT_PATH, STREAM)
        await until(lambda: len(backend(gate).places.queue) == 10 and len(upstream.got) == 2)
        for one in clients:
            one.leave()

        assert {line["status"] for line in await gate.logged(12)} == {499}
        await leftovers.none()
        assert strikes(gate) == 0


async def test_a_waiter_cancelled_in_the_same_turn_as_the_place_comes_free() -> None:
    one = Backend("b", BackendSettings(base_url="http://127.0.0.1:1", max_in_flight=1))
    await one.enter()
    waiter = asyncio.create_task(one.enter())
    await asyncio.sleep(0)
    waiter.cancel()
    one.leave()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert one.in_flight == 0
    async with asyncio.timeout(PATIENCE):
        await one.enter()


async def test_a_place_given_in_the_turn_of_the_cancel_goes_on() -> None:
    one = Backend("b", BackendSettings(base_url="http://127.0.0.1:1", max_in_flight=1))
    await one.enter()
    waiter, next_one = asyncio.create_task(one.enter()), asyncio.create_task(one.enter())
    await asyncio.sleep(0)
    one.leave()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    async with asyncio.timeout(PATIENCE):
        await next_one
    assert one.in_flight == 1


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An address that answers no connection: its backlog is full and nobody accepts."""
    fillers = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
            fillers.append(filler)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_while_connecting(asked: dict) -> None:
    with black_hole() as root:
        settings = one_backend(root) | {"upstream": {"connect_timeout": 600}, "health": {"timeout": 0.1}}
        async with gateway(settings) as gate, client(gate.url) as one:
            leftovers = Leftovers(gate)
            await one.send(CHAT_PATH, asked)
            await until(lambda: backend(gate).in_flight == 1)
            one.leave()

            await left(gate, leftovers)


async def test_no_connection_in_time() -> None:
    with black_hole() as root:
        settings = one_backend(root) | {"upstream": {"connect_timeout": 0.1}, "health": {"timeout": 0.1}}
        async with gateway(settings) as gate:
            reply = await gate.client.post(CHAT_PATH, json=CHAT)

            assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
            assert reply.json()["error"]["code"] == "backend_unavailable"
            assert "within 0.1 s" in reply.json()["error"]["message"]
            assert strikes(gate) == 1


@pytest.mark.parametrize("framing", ["content-length: 1000", "transfer-encoding: chunked"])
async def test_during_upload(framing: str) -> None:
    async with scene(never) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        name, _, value = framing.partition(": ")
        await one.head(CHAT_PATH, {name: value})
        one.writer.write(b'{"model":"pu' if "length" in name else b'5\r\n{"mod\r\n')
        await one.writer.drain()
        one.leave()

        await left(gate, leftovers)
        assert not upstream.got


async def test_after_the_end_marker() -> None:
    """It has all there is, so it hasn't left: the official clients hang up at `[DONE]`. The engine dawdles."""

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one", finish="stop") + DONE)
        await line.closed.wait()

    async with scene(handler) as (upstream, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        await one.until(DONE)
        one.leave()

        (line,) = await gate.logged()
        assert line["status"] == 200
        await upstream.lines[-1].closed.wait()
        await leftovers.none()


async def test_the_next_request_on_the_engine_is_untouched() -> None:
    """What the engine still wrote for a client that left must not reach another."""
    first = True

    async def handler(got: Got, line: Line) -> None:
        nonlocal first
        if first:
            first = False
            await line.head(200, SSE)
            await line.chunk(event("SECRET"))
            await line.closed.wait()
            return
        await line.reply(200, REPLY)

    async with scene(handler) as (upstream, gate):
        async with client(gate.url) as one:
            await one.send(CHAT_PATH, STREAM)
            await one.answer()
            await one.until(b"SECRET")
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert reply.json() == json.loads(REPLY) | {"model": "pub"}
        assert len({id(line) for line in upstream.lines}) >= 2
