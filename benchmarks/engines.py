"""What vLLM, Ollama and TGI send for one chat, as constants, and a server that paces them, as cheap as Python allows.

Every stream becomes `CHUNKS` events for the client. Run as `python -m benchmarks.engines KIND PORT CORE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from benchmarks.upstream import BODY, CHUNKS, LAST, MODEL, PACE, TOKEN

_WORDS: Final = CHUNKS - 2  # a role and a finish chunk are the gateway's
_TEXT: Final = " lorem" * _WORDS


@dataclass(frozen=True, slots=True)
class Spoken:
    """One engine: its stream piece by piece, its whole answer, and what it says to everything else by the path."""

    content_type: str
    stream: tuple[bytes, ...]
    whole: bytes
    others: Mapping[str, Any]

    def other(self, path: str) -> bytes:
        return _json(self.others.get(path, {}))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _openai() -> Spoken:
    listed = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "created": 5}]}
    others = {"/v1/models": listed, "/version": {"version": "0.11.0"}}
    return Spoken("text/event-stream", (*[TOKEN] * (CHUNKS - 1), LAST), BODY, others)


def _ollama() -> Spoken:
    head = {"model": MODEL, "created_at": "2026-01-02T03:04:05.678901234Z"}
    counts = {"total_duration": 5191566416, "load_duration": 2154458, "prompt_eval_count": 180,
              "prompt_eval_duration": 383809000, "eval_count": CHUNKS, "eval_duration": 4799921000}  # fmt: skip
    line = head | {"message": {"role": "assistant", "content": " lorem"}, "done": False}
    end = head | {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"} | counts
    whole = end | {"message": {"role": "assistant", "content": _TEXT}}
    # The texts differ, or they would be a repetition that Ollama ends.
    lines = tuple(_json(line | {"message": {"role": "assistant", "content": f" lorem{n % 2}"}}) for n in range(_WORDS))
    tags = {"models": [{"name": MODEL, "model": MODEL, "modified_at": "2026-01-02T03:04:05Z"}]}
    others = {"/api/version": {"version": "0.33.0"}, "/api/tags": tags}
    return Spoken("application/x-ndjson", tuple(one + b"\n" for one in (*lines, _json(end))), _json(whole), others)


def _tgi() -> Spoken:
    def event(index: int, text: str, more: dict[str, Any]) -> bytes:
        token = {"id": 4567, "text": text, "logprob": -0.3125, "special": not text}
        return b"data:" + _json({"index": index, "token": token} | more) + b"\n\n"

    details = {"finish_reason": "eos_token", "generated_tokens": _WORDS + 1, "seed": 17}
    going: dict[str, Any] = {"generated_text": None, "details": None}
    words = [event(n, " lorem", going) for n in range(1, _WORDS + 1)]
    end = event(_WORDS + 1, "", {"generated_text": _TEXT, "details": details | {"input_length": 180}})
    whole = {"generated_text": _TEXT, "details": details | {"prefill": [], "tokens": []}}
    info = {"version": "3.3.6-dev0", "model_id": MODEL, "router": "text-generation-router", "max_total_tokens": 8192}
    ids = [{"id": 5, "text": "hi", "start": 0, "stop": 2}]
    others = {
        "/info": info,
        "/chat_tokenize": {"tokenize_response": ids, "templated_text": "<|user|>hi"},
        "/tokenize": ids,
    }
    return Spoken("text/event-stream", (*words, end), _json(whole), others)


SPOKEN: Final = {"vllm": _openai(), "ollama": _ollama(), "tgi": _tgi()}
ANSWERING: Final = ("/v1/chat/completions", "/api/chat", "/generate", "/generate_stream")


class Server(asyncio.Protocol):
    """One connection from a gateway; no pipelining."""

    def __init__(self, spoken: Spoken) -> None:
        self._spoken = spoken
        self._pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in spoken.stream]
        self._pieces[-1] += b"0\r\n\r\n"
        self._request = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, blank, body = self._request.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if not blank or len(body) < int(length or b"0"):
            return
        self._request = b""
        path = head.split(b" ", 2)[1].decode()
        if path not in ANSWERING:
            self._whole(self._spoken.other(path))
        elif b'"stream":true' in body or path == "/generate_stream":
            kind = self._spoken.content_type.encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
            self._begin, self._sent = self._loop.time(), 0
            self._tick()
        else:
            self._whole(self._spoken.whole)

    def _whole(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def _tick(self) -> None:
        self._transport.write(self._pieces[self._sent])
        self._sent += 1
        if self._sent < len(self._pieces):
            self._timer = self._loop.call_at(self._begin + self._sent * PACE, self._tick)


async def _serve(kind: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(SPOKEN[kind]), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[3])})
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
