"""A bug of the gateway's own: told inside a stream, never a silent cut, and its traceback stays in the log."""

from __future__ import annotations

import json
import logging

import pytest

from proxy.dialects.openai.stream import PassThroughDecoder
from tests.proxy.harness import Got, Line, engine, gateway, one_backend, sse

CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "model": "up",
    "choices": [{"index": 0, "delta": {"content": "x"}}],
}
EVENT = b"data: " + json.dumps(CHUNK, separators=(",", ":")).encode() + b"\n\n"


@pytest.mark.interpreted
async def test_in_the_middle_of_a_stream(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    feed = PassThroughDecoder.feed
    fed: list[bytes] = []

    def broken(self: PassThroughDecoder, data: bytes) -> bytes:
        fed.append(data)
        if len(fed) > 1:
            raise ZeroDivisionError("a bug")
        return feed(self, data)

    async def answer(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "text/event-stream"})
        await line.chunk(EVENT)
        while not line.closed.is_set() and len(fed) < 2:
            await line.chunk(EVENT)

    monkeypatch.setattr(PassThroughDecoder, "feed", broken)
    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        with caplog.at_level(logging.CRITICAL, "illm"):
            asked = {"model": "pub", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
            reply = await gate.client.post("/v1/chat/completions", json=asked)
        *_, told, end = sse(reply.text)
        (line,) = await gate.logged()

    assert json.loads(told)["error"]["code"] == "internal_error"
    assert end == "[DONE]"
    assert "Traceback" not in reply.text
    assert line["code"] == "internal_error"
