"""A load client over raw asyncio: each connection sends its next request when the last answer is complete.

It measures what a client sees. What the server spent is read by the caller (`figures`), between `mark` and the end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from benchmarks.upstream import CHUNKS, MODEL, PACE

KEY: Final = "sk-bench-0123456789"
STEP: Final = 5  # how many times the wanted seconds a slow server may get
CONNECT: Final = 120.0  # seconds for all connections together
_EVENT: Final = b"data: {"


def request(port: int, *, stream: bool, size: int = 1024) -> bytes:
    """A chat request with a body of `size` bytes, with the headers that OpenAI's own client sends."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": ""}], "temperature": 0.7, "max_tokens": 64}
    if stream:
        asked["stream"] = True
    asked["messages"] = [{"role": "user", "content": "x" * (size - len(_dump(asked)))}]
    body = _dump(asked)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        f"host: 127.0.0.1:{port}\r\naccept-encoding: gzip, deflate\r\nconnection: keep-alive\r\n"
        "accept: application/json\r\ncontent-type: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n"
        "x-stainless-lang: python\r\nx-stainless-package-version: 2.8.0\r\nx-stainless-os: Linux\r\n"
        "x-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\nx-stainless-runtime-version: 3.11.2\r\n"
        f"authorization: Bearer {KEY}\r\nx-stainless-async: false\r\nx-stainless-retry-count: 0\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass
class Tally:
    """What came back since the last `clear`."""

    answers: int = 0
    chunks: int = 0
    first: list[float] = field(default_factory=list)  # seconds to the first byte of a stream's body, or to a head
    whole: list[float] = field(default_factory=list)  # seconds to the end of an answer
    seconds: float = 0.0  # that this was counted for

    def clear(self) -> None:
        self.answers = self.chunks = 0
        self.first.clear()
        self.whole.clear()


class Client(asyncio.Protocol):
    """One connection. Anything but a complete 200 ends the run; `exact` streams have every chunk of the engine's."""

    def __init__(
        self, request: bytes, tally: Tally, failed: asyncio.Future[None], *, stream: bool, exact: bool = True
    ) -> None:
        self._request = request
        self._tally = tally
        self._failed = failed
        self._stream = stream
        self._exact = exact
        self._answer = bytearray()
        self._need = 0
        self._asked = 0.0
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopped:
            self._fail("a connection was closed")

    def close(self) -> None:
        self.stopped = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        answer += data
        if not self._need:
            self._head()
        if self._stream:
            self._tally.chunks += data.count(_EVENT)
            if answer.endswith(b"0\r\n\r\n"):
                if b"[DONE]" not in answer or (self._exact and answer.count(_EVENT) != CHUNKS):
                    self._fail("a stream lost chunks")
                self._next()
        elif self._need and len(answer) >= self._need:
            self._next()

    def _ask(self) -> None:
        self._answer.clear()
        self._need = 0
        self._asked = perf_counter()
        self._transport.write(self._request)

    def _head(self) -> None:
        end = self._answer.find(b"\r\n\r\n")
        if end < 0 or (self._stream and len(self._answer) == end + 4):
            return
        self._tally.first.append(perf_counter() - self._asked)
        head = bytes(self._answer[:end]).lower()
        if not head.startswith(b"http/1.1 200"):
            self._fail(bytes(self._answer[:500]).decode("latin-1"))
        self._need = end + 4
        if not self._stream:
            self._need += int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])

    def _next(self) -> None:
        self._tally.answers += 1
        self._tally.whole.append(perf_counter() - self._asked)
        self._ask()

    def _fail(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(RuntimeError(why))


async def drive(
    port: int,
    *,
    clients: int,
    stream: bool,
    warm: float,
    seconds: float,
    mark: Callable[[], float],
    size: int = 1024,
    exact: bool = True,
) -> tuple[Tally, float]:
    """Keep `clients` connections busy, then return what they saw in the last `seconds` and by how much `mark`
    grew meanwhile. Streams begin at different moments, as they do in life. A server too slow to answer every client
    once in that time gets up to `STEP` times as long. Raises `RuntimeError` for any failure, `OSError` or
    `TimeoutError` where it can't connect."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()
    tally = Tally()
    sent = request(port, stream=stream, size=size)
    made: list[Client] = []
    try:
        async with asyncio.timeout(CONNECT):
            for _ in range(clients):
                client = Client(sent, tally, failed, stream=stream, exact=exact)
                await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
                made.append(client)
                if stream:
                    await asyncio.sleep(CHUNKS * PACE / clients)
        await _unless(failed, warm)
        tally.clear()
        before, begun = mark(), perf_counter()
        for _ in range(STEP):
            await _unless(failed, seconds)
            if tally.answers >= clients:
                break
        spent = mark() - before
        return Tally(tally.answers, tally.chunks, list(tally.first), list(tally.whole), perf_counter() - begun), spent
    finally:
        for client in made:
            client.close()
        failed.cancel()
        await asyncio.sleep(0.05)


async def _unless(failed: asyncio.Future[None], seconds: float) -> None:
    done, _ = await asyncio.wait([failed], timeout=seconds)
    for future in done:
        future.result()
