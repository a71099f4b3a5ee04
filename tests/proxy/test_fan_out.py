"""Answers of a fan-out that arrive at the same moment: one end marker, and it is the last thing."""

from __future__ import annotations

import asyncio
import json

from tests.proxy.harness import Got, Line, engine, gateway, one_backend, sse


async def test_the_end_marker_is_last() -> None:
    waiting: list[Line] = []
    both = asyncio.Event()

    async def answer(got: Got, line: Line) -> None:
        waiting.append(line)
        if len(waiting) % 2:
            both.clear()
            await both.wait()
        else:
            for one in reversed(waiting[-2:]):  # the later one is decoded first
                for word in ("a", "b"):
                    body = {"response": word, "created_at": "2026-01-02T03:04:05Z", "done": word == "b"}
                    data = json.dumps(body).encode() + b"\n"
                    kind = b"content-type: application/x-ndjson"
                    head = b"HTTP/1.1 200 OK\r\n%b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
                    end = b"0\r\n\r\n" if word == "b" else b""
                    one.writer.write((head if word == "a" else b"") + b"%x\r\n%b\r\n" % (len(data), data) + end)
            both.set()

    async with engine(answer) as upstream, gateway(one_backend(upstream.root, "ollama")) as gate:
        for _ in range(10):
            asked = {"model": "pub", "prompt": ["x", "y"], "stream": True}
            found = sse((await gate.client.post("/v1/completions", json=asked)).text)
            assert found.index("[DONE]") == len(found) - 1, found
