"""An engine that breaks off, can't be reached or falls silent: what the client hears, and who is blamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.connection import ConnectFailed
from proxy.transport import Transport
from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    PATHS,
    SSE,
    STREAM,
    Leftovers,
    client,
    errors,
    event,
    never,
    ok,
    replicas,
    scene,
    strikes,
)
from tests.proxy.harness import Got, Line, engine, gateway, one_backend


async def crash(line: Line) -> None:
    line.drop()


async def close_early(line: Line) -> None:
    """An orderly close of the connection, in the middle of a chunked body."""
    line.writer.close()


async def end_early(line: Line) -> None:
    """An orderly end of the body, but not of what is in it."""
    await line.end()


HOW = [crash, close_early, end_early]
Break = Callable[[Line], Awaitable[None]]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PATHS)
async def test_mid_stream(name: str, how: Break) -> None:
    heard = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one") + b"data: {half an ev")
        await heard.wait()
        await how(line)

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send(*PATHS[name])
        assert (await one.answer())[0] == 200
        assert await one.until(b"one") == event("one", "pub")
        heard.set()
        got = await one.rest()

        (error,) = errors(got)
        assert (error["code"], error["type"]) == ("upstream_incomplete", "RemoteEndpointError")
        assert "'b'" in error["message"]
        assert b"half an ev" not in got
        if name in ("chat", "completions"):
            assert got.endswith(b"\n\n" + DONE)
        else:
            assert got.startswith(b"event: error\ndata: ")
        (line,) = await gate.logged()
        assert (line["status"], line["code"]) == (200, "upstream_incomplete")
        assert strikes(gate) == (0 if how is end_early else 1)


@pytest.mark.parametrize("how", [crash, close_early])
@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_after_the_head_before_an_event(asked: dict, how: Break) -> None:
    async def handler(got: Got, line: Line) -> None:
        await line.head(200, SSE if got.json.get("stream") else {"content-type": "application/json"})
        await line.chunk(b'data: {"id"' if got.json.get("stream") else b'{"id"')
        await how(line)

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert reply.status_code == 502
        assert reply.json()["error"]["code"] == "upstream_incomplete"
        assert strikes(gate) == 1


@pytest.mark.parametrize("how", [crash, close_early])
@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_before_the_head(asked: dict, how: Break) -> None:
    async def handler(_: Got, line: Line) -> None:
        await how(line)

    async with scene(handler) as (upstream, gate):
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert reply.json()["error"]["code"] == "backend_unavailable"
        assert strikes(gate) == 1
        assert len(upstream.got) == 1  # a fresh connection that breaks is no stale one


async def test_inside_audio_the_connection_breaks_too() -> None:
    """Nothing inside the bytes can say it, so they must not seem complete."""

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "audio/mpeg"})
        await line.chunk(b"\xff\xfb")
        await asyncio.sleep(0)
        line.writer.close()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send("/v1/audio/speech", {"model": "pub", "input": "hi", "voice": "x"})
        await one.answer()
        assert await one.piece() == b"\xff\xfb"

        assert await one.everything() == b""
        (line,) = await gate.logged()
        assert line["code"] == "upstream_incomplete"


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/embeddings"])
async def test_refused_with_another_replica(path: str) -> None:
    async with engine() as gone:
        pass
    async with replicas(ok, ok) as (a, b, gate):
        await a.close()
        for line in a.lines:
            await line.closed.wait()
        assert gone.root != b.root
        for _ in range(4):
            reply = await gate.client.post(path, json=CHAT | {"input": "x"})

            assert reply.status_code == 200
        assert len(b.got) == 4
        assert strikes(gate, "b") == 0


async def test_refused_everywhere() -> None:
    async with replicas(ok, ok) as (a, b, gate):
        await a.close()
        await b.close()
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert "connection refused" in reply.json()["error"]["message"]
        (line,) = await gate.logged()
        assert line["attempts"] == 2
        assert (strikes(gate, "a"), strikes(gate, "b")) == (1, 1)


@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_no_head_in_time(asked: dict) -> None:
    async with scene(never, upstream={"response_timeout": 0.3}) as (upstream, gate):
        leftovers = Leftovers(gate)
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "backend_timeout"
        await upstream.lines[-1].closed.wait()
        assert strikes(gate) == 0  # slow is not dead
        await gate.client.aclose()
        await leftovers.none()


async def test_silent_in_mid_stream_for_too_long() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)  # and at once, before the gateway's turn:
        await line.chunk(event("one"))
        await line.closed.wait()

    async with scene(handler, upstream={"idle_timeout": 0.3}) as (upstream, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        got = await one.rest()

        assert got.startswith(event("one", "pub"))
        assert got.endswith(DONE)
        (error,) = errors(got)
        assert error["code"] in ("upstream_incomplete", "backend_timeout")
        assert "0.3 s" in error["message"]
        await upstream.lines[-1].closed.wait()
        assert strikes(gate) == 0


async def test_a_broken_error_body_is_an_error_all_the_same() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(400, {"content-type": "application/json"})
        await line.chunk(b'{"error":')
        line.drop()

    async with scene(handler) as (_, gate):
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert reply.status_code >= 400
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


# -- connections that were kept -----------------------------------------------------------------------------------


async def test_a_kept_connection_that_the_engine_closes_as_the_next_request_comes() -> None:
    """The engine never read that request, so sending it once more is safe."""
    async with engine(ok) as upstream:
        read = upstream._read
        used: list[asyncio.StreamReader] = []

        async def closes_the_kept_one(reader: asyncio.StreamReader) -> Got | None:
            if used and reader is used[0]:
                await reader.read(1)
                return None
            got = await read(reader)
            if got is not None and got.method == "POST":
                used.append(reader)
            return got

        upstream._read = closes_the_kept_one  # type: ignore[method-assign, assignment]
        async with gateway(one_backend(upstream.root)) as gate:
            assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
            reply = await gate.client.post(CHAT_PATH, json=CHAT | {"n": 1})

            assert reply.status_code == 200
            assert len(used) == 2
            assert [got.json.get("n") for got in upstream.got] == [None, 1]
            assert strikes(gate) == 0


async def test_a_kept_connection_that_the_engine_closed_before() -> None:
    async with scene(ok) as (upstream, gate):
        for turn in range(5):
            assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
            upstream.lines[-1].writer.close() if turn % 2 else upstream.lines[-1].drop()

        assert len(upstream.got) == 5
        assert strikes(gate) == 0


async def test_an_idle_engine_that_talks_spoils_no_answer() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.reply(200, b'{"model":"up","id":"right"}')
        line.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\ncontent-type: application/json\r\n\r\n")
        line.writer.write(b'{"id":"wrong"}')

    async with scene(handler) as (_, gate):
        for _ in range(3):
            reply = await gate.client.post(CHAT_PATH, json=CHAT)

            assert reply.json() == {"model": "pub", "id": "right"}


async def test_two_answers_at_once_are_not_mixed() -> None:
    async def handler(_: Got, line: Line) -> None:
        answers = []
        for status, body in ((b"200", b'{"id":"right"}'), (b"404", b'{"id":"wrong"}')):
            answers.append(b"HTTP/1.1 %b X\r\ncontent-type: application/json\r\n" % status)
            answers.append(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        line.writer.write(b"".join(answers))
        await line.writer.drain()

    async with scene(handler) as (_, gate):
        for _ in range(2):
            reply = await gate.client.post(CHAT_PATH, json=CHAT)

            assert (reply.status_code, reply.content) in ((200, b'{"id":"right"}'), (503, reply.content))
            assert b"wrong" not in reply.content


@pytest.mark.parametrize("listens_on", [True, False])
async def test_a_crash_on_a_kept_connection_is_not_replayed_elsewhere(listens_on: bool) -> None:
    """The request may be what killed it: it must not go round and kill every replica."""
    calls = 0

    async def deadly(_: Got, line: Line) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await ok(_, line)
            return
        if not listens_on:
            assert a.server is not None
            a.server.close()
        line.drop()

    async with replicas(deadly, ok) as (a, b, gate):
        gate.gateway.registry.backends["b"].places.held += 10  # so that all go to the first
        assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
        reply = await gate.client.post(CHAT_PATH, json=CHAT)

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "backend_unavailable")
        assert not b.got
        assert strikes(gate, "a") >= 1
        gate.gateway.registry.backends["b"].places.held -= 10


@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_a_crash_on_a_fresh_connection_is_not_replayed_elsewhere(asked: dict) -> None:
    async def deadly(_: Got, line: Line) -> None:
        line.drop()

    async with replicas(deadly, deadly) as (a, b, gate):
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "backend_unavailable")
        assert len(a.got) + len(b.got) == 1


# -- turned away --------------------------------------------------------------------------------------------------


class TurnsAway:
    """Of two replicas, the one that is asked first refuses."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._status = status
        self._headers = headers or {}
        self.calls = 0

    async def __call__(self, got: Got, line: Line) -> None:
        self.calls += 1
        if self.calls == 1:
            await line.reply(self._status, b'{"error":{"message":"go away"}}', **self._headers)
        elif got.json.get("stream"):
            await line.head(200, SSE)
            await line.chunk(event("one", finish="stop") + DONE)
            await line.end()
        else:
            await ok(got, line)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["plain", "streamed"])
async def test_turned_away_goes_to_another_replica(asked: dict, status: int) -> None:
    handler = TurnsAway(status)
    async with replicas(handler, handler) as (a, b, gate):
        reply = await gate.client.post(CHAT_PATH, json=asked)

        assert reply.status_code == 200
        assert (len(a.got), len(b.got)) == (1, 1)
        (line,) = await gate.logged()
        assert line["attempts"] == 2
        assert (strikes(gate, "a"), strikes(gate, "b")) == (0, 0)


@pytest.mark.parametrize(
    ("path", "status", "seen"),
    [
        ("/v1/embeddings", 503, 503),
        ("/v1/embeddings", 429, 429),
        (CHAT_PATH, 400, 400),
        (CHAT_PATH, 404, 502),
        (CHAT_PATH, 422, 400),
        (CHAT_PATH, 500, 500),
        (CHAT_PATH, 401, 502),
    ],
)
async def test_what_is_not_tried_again(path: str, status: int, seen: int) -> None:
    handler = TurnsAway(status)
    async with replicas(handler, handler) as (a, b, gate):
        for name in "ab":
            gate.gateway.registry.backends[name].state = "unknown"  # or a missing route would be a missing ability
        reply = await gate.client.post(path, json=CHAT | {"input": "x"})

        assert reply.status_code == seen
        assert len(a.got) + len(b.got) == 1
        assert (strikes(gate, "a"), strikes(gate, "b")) == (0, 0)


async def test_once_only() -> None:
    async def full(_: Got, line: Line) -> None:
        await line.reply(503, b'{"error":{"message":"full"}}', retry_after="7")

    async with engine(full) as a, engine(full) as b, engine(full) as c:
        backends = {n: {"kind": "vllm", "base_url": e.root} for n, e in (("a", a), ("b", b), ("c", c))}
        models = {"pub": {"replicas": [{"backend": n, "model": "up"} for n in backends]}}
        async with gateway({"backends": backends, "models": models}) as gate:
            reply = await gate.client.post(CHAT_PATH, json=CHAT)

            assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
            assert len(a.got) + len(b.got) + len(c.got) == 2


async def test_not_after_a_comment() -> None:
    """The client has heard something: the answer is what the first replica says."""
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.reply(503, b'{"error":{"message":"no room"}}')

    async with (
        replicas(handler, handler, server={"keep_alive_interval": 0.02}) as (a, b, gate),
        client(gate.url) as one,
    ):
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        assert await one.piece() == b": keep-alive\n\n"
        go.set()
        got = await one.rest()

        assert [error["message"] for error in errors(got)] == ["no room"]
        assert got.endswith(DONE)
        assert len(a.got) + len(b.got) == 1


@pytest.mark.interpreted
async def test_a_late_connection_of_a_fan_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two engine streams runs already when the other's connection is refused."""
    heard = asyncio.Event()
    token = {"token": {"id": 1, "text": "one", "logprob": -1.0, "special": False}, "generated_text": None, "index": 1}

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(b"data:" + json.dumps(token | {"details": None}).encode() + b"\n\n")
        await line.closed.wait()

    async with scene(handler, kind="tgi") as (upstream, gate), client(gate.url) as one:
        connect, calls = Transport.connect, 0

        async def refused(self: Transport, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                await heard.wait()
                raise ConnectFailed("connection refused")
            return await connect(self, *arguments)

        monkeypatch.setattr(Transport, "connect", refused)
        await one.send("/v1/completions", {"model": "pub", "prompt": ["a", "b"], "stream": True, "max_tokens": 5})
        assert (await one.answer())[0] == 200
        got = await one.until(b"one")
        heard.set()
        got += await one.rest()

        assert [error["code"] for error in errors(got)] == ["upstream_incomplete"]
        assert got.endswith(DONE)
        await upstream.lines[-1].closed.wait()


async def test_an_error_in_the_first_event_is_a_plain_one() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(b'data: {"error":{"message":"bad","type":"BadRequestError","param":null,"code":400}}\n\n')
        await line.closed.wait()

    async with scene(handler) as (upstream, gate):
        reply = await gate.client.post(CHAT_PATH, json=STREAM)

        assert reply.status_code == 400
        assert json.loads(reply.content)["error"]["message"] == "bad"
        assert strikes(gate) == 0
        await upstream.lines[-1].closed.wait()
