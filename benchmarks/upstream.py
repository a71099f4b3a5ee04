"""A stand-in engine, as cheap as Python allows: it speaks just enough HTTP/1.1 and of OpenAI's API to be proxied.

POST gets a constant answer of about 1 KB, or a stream of `CHUNKS` events `PACE` seconds apart; GET says that it has
one model. Run as `python -m benchmarks.upstream PORT CORE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Final

import uvloop

MODEL: Final = "bench"
CHUNKS: Final = 64
PACE: Final = 0.01  # seconds between two events of a stream

_COMMON: Final = {"id": "chatcmpl-0123456789abcdef", "created": 1700000000, "model": MODEL}
_USAGE: Final = {"prompt_tokens": 180, "completion_tokens": CHUNKS, "total_tokens": 180 + CHUNKS}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _whole() -> bytes:
    message = {"role": "assistant", "content": "lorem ipsum " * 64}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _json(_COMMON | {"object": "chat.completion", "choices": [choice], "usage": _USAGE})


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + _json(_COMMON | {"object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


BODY: Final = _whole()
TOKEN: Final = _event({"content": " lorem"}, None)
LAST: Final = _event({}, "stop") + b"data: [DONE]\n\n"
_MODELS: Final = _json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "created": 5}]})


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_PLAIN: Final = _answer(BODY)
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN: Final = _chunk(TOKEN)
_END: Final = _chunk(LAST) + b"0\r\n\r\n"


class StandIn(asyncio.Protocol):
    """One connection from a gateway; no pipelining."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._request = b""

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, blank, body = self._request.partition(b"\r\n\r\n")
        if not blank:
            return
        if not head.startswith((b"GET ", b"POST ")):
            self._transport.close()  # a peer that tries HTTP/2 learns that there is none
        elif head.startswith(b"GET "):
            path = head.split(b" ", 2)[1]
            self._transport.write(_answer(_MODELS if path.endswith(b"/models") else b'{"version":"0.11.0"}'))
        elif len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        elif b'"stream":true' in body:
            self._transport.write(_HEAD + _TOKEN)
            self._begin = self._loop.time()
            self._sent = 1
            self._next()
        else:
            self._transport.write(_PLAIN)
        self._request = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _next(self) -> None:
        self._timer = self._loop.call_at(self._begin + self._sent * PACE, self._tick)

    def _tick(self) -> None:
        self._sent += 1
        if self._sent < CHUNKS:
            self._transport.write(_TOKEN)
            self._next()
        else:
            self._timer = None
            self._transport.write(_END)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    uvloop.run(_serve(int(sys.argv[1])))
