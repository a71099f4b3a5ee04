"""Engines that answer with nothing: no client can find in it what it asked for, so it is an error that says so."""

from __future__ import annotations

import pytest

from tests.faults.support import scene
from tests.proxy.harness import Got, Line

ASKED = {"model": "pub", "input": "hi", "query": "q", "documents": ["d"], "prompt": "x"}
NOTHING = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 of a type": b"HTTP/1.1 204 No Content\r\ncontent-type: text/plain\r\n\r\n",
    "204 of JSON": b"HTTP/1.1 204 No Content\r\ncontent-type: application/json\r\n\r\n",
    "200 of no type": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "200 in no chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/audio/speech", "/tokenize"])
@pytest.mark.parametrize("data", NOTHING.values(), ids=NOTHING)
async def test_nothing_is_no_answer(data: bytes, path: str) -> None:
    async def handler(_: Got, line: Line) -> None:
        line.writer.write(data)
        await line.writer.drain()

    async with scene(handler) as (_, gate):
        said = await gate.client.post(path, json=ASKED)

        assert (said.status_code, said.json()["error"]["code"]) == (502, "upstream_invalid_response")
        assert "'b'" in said.json()["error"]["message"]


async def test_an_empty_file_is_one() -> None:
    """Where the engine says what it is that is empty."""

    async def handler(_: Got, line: Line) -> None:
        await line.reply(200, b"", "audio/mpeg")

    async with scene(handler) as (_, gate):
        said = await gate.client.post("/v1/audio/speech", json=ASKED)

        assert (said.status_code, said.content, said.headers["content-type"]) == (200, b"", "audio/mpeg")
