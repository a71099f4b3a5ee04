"""The mixed load of `soak`: clients that ask well and badly, stay and leave, each by itself over a raw socket.

A deed is one of them; it returns what came of it as a word or a status. `DEEDS` says which results are right. Whether
anything grows meanwhile is looked at elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.load import KEY
from benchmarks.upstream import MODEL

PATIENCE: Final = 120.0  # seconds for a whole deed: what hangs does so for ever, what is merely slow must not count
FLAPPING, DEAD, EITHER = "flapping", "dead", "either"
DONE, ERROR_IN_STREAM, CUT, LEFT, HANGS = "done", "error in stream", "cut", "left", "hangs"
GONE: Final = frozenset(("502", "503", "504"))


class Talk:
    """One connection to the gateway. Close it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Talk:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def ask(self, method: str, path: str, body: bytes = b"", key: str = KEY, missing: int = 0) -> None:
        """Sends a request, without its last `missing` bytes."""
        head = f"{method} {path} HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}"
        whole = head.encode() + b"\r\ncontent-type: application/json\r\n\r\n" + body
        self._writer.write(whole[: len(whole) - missing])

    async def head(self) -> tuple[str, bool]:
        """The status, and whether the body is chunked. Raises `asyncio.IncompleteReadError` or `OSError` when cut."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        found = head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        self._length = int(found or 0)
        return head.split(b" ", 2)[1].decode(), b"transfer-encoding: chunked" in head

    async def whole(self) -> bytes:
        return await self._reader.readexactly(self._length)

    async def piece(self) -> bytes:
        """The next piece of a chunked body; empty at its end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:size]

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _body(model: str, *, stream: bool) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": "x" * 900}], "stream": stream}
    return json.dumps(asked, separators=(",", ":")).encode()


Act = Callable[[Talk, random.Random], Awaitable[str]]
CHAT: Final = "/v1/chat/completions"


def plain(model: str) -> Act:
    """Some requests on one connection, read whole; the worst status counts."""

    async def act(talk: Talk, dice: random.Random) -> str:
        worst = ""
        for _ in range(dice.randint(1, 4)):
            talk.ask("POST", CHAT, _body(model, stream=False))
            status, _chunked = await talk.head()
            await talk.whole()
            worst = max(worst, status)
        return worst

    return act


def stream(model: str) -> Act:
    """A stream, read to its end."""

    async def act(talk: Talk, dice: random.Random) -> str:
        talk.ask("POST", CHAT, _body(model, stream=True))
        status, chunked = await talk.head()
        if not chunked:
            await talk.whole()
            return status
        text = b""
        while piece := await talk.piece():
            text += piece
        if b'"error"' in text:
            return ERROR_IN_STREAM
        return DONE if text.endswith(b"data: [DONE]\n\n") else CUT

    return act


async def leave_stream(talk: Talk, dice: random.Random) -> str:
    """Goes after some events."""
    talk.ask("POST", CHAT, _body(MODEL, stream=True))
    status, chunked = await talk.head()
    if not chunked:
        await talk.whole()
        return status
    for _ in range(dice.randint(1, 30)):
        if not await talk.piece():  # on a busy machine a stream has fewer pieces than events
            break
    return LEFT


async def leave_at_once(talk: Talk, dice: random.Random) -> str:
    """Goes before the answer begins."""
    talk.ask("POST", CHAT, _body(MODEL, stream=dice.random() < 0.5))
    await asyncio.sleep(dice.choice((0.0, 0.001, 0.005)))
    return LEFT


async def leave_midway(talk: Talk, dice: random.Random) -> str:
    """Goes in the middle of its own request."""
    talk.ask("POST", CHAT, _body(MODEL, stream=False), missing=dice.randint(1, 1000))
    await asyncio.sleep(dice.choice((0.0, 0.001, 0.005)))
    return LEFT


def one(method: str, path: str, body: bytes = b"", key: str = KEY) -> Act:
    """One request with a whole answer."""

    async def act(talk: Talk, dice: random.Random) -> str:
        talk.ask(method, path, body, key)
        status, _ = await talk.head()
        await talk.whole()
        return status

    return act


@dataclass(frozen=True, slots=True)
class Deed:
    act: Act
    right: frozenset[str]
    weight: int


def _deed(act: Act, weight: int, *right: str) -> Deed:
    return Deed(act, frozenset(right), weight)


DEEDS: Final[Mapping[str, Deed]] = {
    "plain": _deed(plain(MODEL), 20, "200"),
    "plain, one of two engines is dead": _deed(plain(EITHER), 5, "200"),
    "plain, engine dead": _deed(plain(DEAD), 5, *GONE),
    "plain, engine flapping": _deed(plain(FLAPPING), 5, "200", *GONE),
    "stream": _deed(stream(MODEL), 20, DONE),
    "stream, one of two engines is dead": _deed(stream(EITHER), 5, DONE),
    "stream, engine dead": _deed(stream(DEAD), 5, *GONE),
    "stream, engine flapping": _deed(stream(FLAPPING), 8, DONE, ERROR_IN_STREAM, *GONE),
    "leaves a stream": _deed(leave_stream, 10, LEFT),
    "leaves at once": _deed(leave_at_once, 10, LEFT),
    "leaves in its request": _deed(leave_midway, 5, LEFT),
    "unknown model": _deed(one("POST", CHAT, _body("nobody", stream=True)), 5, "404"),
    "wrong key": _deed(one("POST", CHAT, _body(MODEL, stream=True), key="sk-wrong"), 5, "401"),
    "broken JSON": _deed(one("POST", CHAT, b'{"model": "bench", '), 5, "400"),
    "unknown path": _deed(one("GET", "/v1/nothing"), 2, "404"),
    "models": _deed(one("GET", "/v1/models"), 3, "200"),
    "metrics": _deed(one("GET", "/metrics"), 1, "200"),
}


@dataclass
class Tally:
    """What was done so far, and what came of it that was not right."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


async def client(port: int, number: int, tally: Tally, until: asyncio.Event) -> None:
    """Does one deed after another until the event is set."""
    dice = random.Random(number)
    names, weights = list(DEEDS), [deed.weight for deed in DEEDS.values()]
    while not until.is_set():
        (name,) = dice.choices(names, weights)
        came = await _do(DEEDS[name].act, port, dice)
        tally.done[name] += 1
        if came not in DEEDS[name].right:
            tally.wrong[f"{name}: {came}"] += 1


async def _do(act: Act, port: int, dice: random.Random) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            talk = await Talk.open(port)
            try:
                return await act(talk, dice)
            finally:
                await talk.close()
    except TimeoutError:
        return HANGS
    except (OSError, asyncio.IncompleteReadError, ValueError) as why:
        return f"{CUT} ({type(why).__name__})"
