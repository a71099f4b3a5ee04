"""How a stream reaches the client: each piece at once, its bytes as the engine wrote them but for the model's name,
comments while the engine is silent.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    PATHS,
    REPLY,
    SSE,
    STREAM,
    Leftovers,
    client,
    errors,
    event,
    scene,
)
from tests.proxy.harness import Got, Line, until

FAST = {"keep_alive_interval": 0.02}
COMMENT = b": keep-alive\n\n"


def public(data: bytes) -> bytes:
    return data.replace(b'"model":"up"', b'"model":"pub"')


async def turns(count: int = 20) -> None:
    """Let the gateway, which lives in this loop, read what was written."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", PATHS)
async def test_each_piece_at_once(name: str) -> None:
    """The engine goes on only after the client has what was said before."""
    heard = asyncio.Event()
    said = [event("one"), event("two"), event("three", finish="stop"), DONE]

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        for piece in said:
            heard.clear()
            await line.chunk(piece)
            await heard.wait()
        await line.end()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send(*PATHS[name])
        status, headers = await one.answer()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        for piece in said[:3]:
            assert await one.piece() == public(piece)
            heard.set()
            await turns()


async def test_audio_at_once_and_untouched() -> None:
    heard = asyncio.Event()
    said = [b"data: \xff\xfb", b"\n\n: [DONE]", b'"model":"up"\x00']

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "audio/mpeg"})
        for piece in said:
            heard.clear()
            await line.chunk(piece)
            await heard.wait()
        await line.end()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send("/v1/audio/speech", {"model": "pub", "input": "hi", "voice": "x"})
        status, headers = await one.answer()
        assert (status, headers["content-type"]) == (200, "audio/mpeg")
        for piece in said:
            assert await one.piece() == piece
            heard.set()
            await turns()
        assert await one.piece() == b""


# Text that an unwary reader takes for something else, or cuts in the middle.
TEXTS = ["é", "日本語", "🦙" * 3, '"model":"up"', "data: [DONE]\n\n", "\u2028\x85", "\\", ""]
SAID = b"".join([*(event(text) for text in TEXTS), event("end", finish="stop"), DONE])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, len(SAID)])
async def test_any_cut(size: int) -> None:
    """Inside an event, a character, the model's name; many events in one read."""

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        for at in range(0, len(SAID), size):
            await line.chunk(SAID[at : at + size])
            await turns(6)
        await line.end()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        pieces = []
        while piece := await one.piece():
            pieces.append(piece)

        assert b"".join(pieces) == b"".join(
            [*(event(text, "pub") for text in TEXTS), event("end", "pub", finish="stop"), DONE]
        )
        assert all(piece.endswith(b"\n\n") for piece in pieces)


async def test_several_events_in_one_read_are_one_write() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(b"".join(event(str(n)) for n in range(50)))
        await line.closed.wait()

    async with scene(handler) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await one.answer()

        assert await one.piece() == b"".join(event(str(n), "pub") for n in range(50))


# -- silence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
async def test_comments_before_the_first_event(name: str) -> None:
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.head(200, SSE)
        await line.chunk(event("one"))
        await line.closed.wait()

    async with scene(handler, server=FAST) as (_, gate), client(gate.url) as one:
        await one.send(*PATHS[name])
        status, headers = await one.answer()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        for _ in range(3):
            assert await one.piece() == COMMENT
        go.set()

        got = await one.until(b"one")
        assert got.replace(COMMENT, b"") == event("one", "pub")


async def test_comments_in_mid_stream_stand_between_events() -> None:
    go = asyncio.Event()
    second = event("twö")
    half = second.index("ö".encode()) + 1

    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one") + second[:half])
        await go.wait()
        await line.chunk(second[half:])
        await line.chunk(event("end", finish="stop") + DONE)
        await line.end()

    async with scene(handler, server=FAST) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        got = await one.until(COMMENT)
        got += await one.until(COMMENT)
        go.set()
        got += await one.rest()

        assert got.startswith(event("one", "pub") + COMMENT)
        wanted = event("one", "pub") + event("twö", "pub") + event("end", "pub", "stop") + DONE
        assert got.replace(COMMENT, b"") == wanted


QUIET = {
    "a plain chat": (CHAT_PATH, CHAT, "application/json", REPLY),
    "no stream": ("/v1/embeddings", {"model": "pub", "input": "x", "stream": True}, "application/json", b"[1,2]"),
    "audio": ("/v1/audio/speech", {"model": "pub", "input": "x", "stream": True}, "audio/mpeg", b"\xff" * 8),
}  # fmt: skip


@pytest.mark.parametrize("case", QUIET.values(), ids=QUIET)
async def test_no_comments_in_what_is_no_event_stream(case: tuple[str, dict, str, bytes]) -> None:
    """Another call's comments tell how long the silence is."""
    path, asked, kind, answer = case
    go = asyncio.Event()

    async def handler(got: Got, line: Line) -> None:
        if got.path == CHAT_PATH and got.json.get("stream"):
            await line.closed.wait()
        elif kind == "audio/mpeg":
            await line.head(200, {"content-type": kind})
            await line.chunk(answer[:4])
            await go.wait()
            await line.chunk(answer[4:])
            await line.end()
        else:
            await go.wait()
            await line.reply(200, answer, kind)

    async with scene(handler, server=FAST) as (upstream, gate), client(gate.url) as clock:
        quiet = asyncio.create_task(gate.client.post(path, json=asked))
        await until(lambda: len(upstream.got) == 1)
        await clock.send(CHAT_PATH, STREAM)
        await clock.answer()
        for _ in range(4):
            assert await clock.piece() == COMMENT
        assert not quiet.done()
        go.set()
        reply = await quiet

        assert reply.status_code == 200
        assert reply.content.replace(b'"pub"', b'"up"') == answer.replace(b": ", b":").replace(b", ", b",")


REFUSALS = {
    "an error": (400, b'{"error":{"message":"too odd","type":"BadRequestError","code":400}}', None),
    "busy": (503, b'{"error":{"message":"no room"}}', "backend_overloaded"),
    "no JSON": (200, b"<html>", "upstream_invalid_response"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("name", PATHS)
async def test_an_error_after_comments_is_in_the_stream(name: str, case: tuple[int, bytes, str | None]) -> None:
    status, body, code = case
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.reply(status, body)

    async with scene(handler, server=FAST) as (_, gate), client(gate.url) as one:
        leftovers = Leftovers(gate)
        await one.send(*PATHS[name])
        assert (await one.answer())[0] == 200
        assert await one.piece() == COMMENT
        go.set()
        got = (await one.rest()).replace(COMMENT, b"")

        (error,) = errors(got)
        assert error["code"] == code
        if name in ("chat", "completions"):
            assert got.endswith(DONE)
        else:
            assert got.startswith(b"event: error\ndata: ")
            assert b"[DONE]" not in got
        (line,) = await gate.logged()
        assert (line["status"], line.get("code")) == (200, code or "invalid_request_error")
        one.leave()
        upstream_tasks_are_kept = 1  # the connection to the engine stays open for the next call
        await until(lambda: len(asyncio.all_tasks() - leftovers._before) <= upstream_tasks_are_kept)


async def test_a_whole_answer_after_comments_is_one_event() -> None:
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.reply(200, REPLY)

    async with scene(handler, server=FAST) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        await one.answer()
        assert await one.piece() == COMMENT
        go.set()
        got = (await one.rest()).replace(COMMENT, b"")

        first, end = got.split(b"\n\n", 1)
        assert json.loads(first.removeprefix(b"data: ")) == json.loads(REPLY) | {"model": "pub"}
        assert end == DONE
