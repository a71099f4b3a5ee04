"""What a stand-in is told to do for one request: magic words in a prompt, or a fault queued through `/_standin/faults`.

A prompt may carry one directive as JSON, `@@{"text": "Hi", "fail_at": 1, "fail": "index out of range"}@@`:

    text          say this instead of the known text
    first_delay   seconds before the first token
    delay         seconds before every token
    fail_prefill  the generation fails with this text before any token
    fail_at, fail after that many tokens the generation fails with this text
    vanish_at     after that many tokens the engine goes quiet: TGI reports an incomplete generation, Ollama just ends
    stall_at      after that many tokens nothing more is sent until the client leaves
    cut_at        after that many tokens the connection is closed without the end of the body
    reset_at      after that many tokens the connection is reset (RST)
    garbage_at    after that many tokens a broken line is sent and the stream goes on; a whole reply is broken JSON
    exit_at       after that many tokens the whole program dies
    held          true: what it does after so many tokens it does when POST /_standin/release was asked
    pieces        body bytes in each HTTP chunk, so that reads split anywhere
    answer        {"status", "body", "type"}: this raw answer at once, as a proxy in front of the engine would give it

Where the word "forever" stands in the last message, the answer has no end but the output limit.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any, Self, TypeVar

from tests.engines.speech import FOREVER_PIECES, FOREVER_WORD
from tests.standins.server import Exchange

T = TypeVar("T")

_MARKED = re.compile(r"@@(\{.*?\})@@", re.DOTALL)
ENDLESS_DELAY = 0.001  # lets the client's leaving be noticed between two tokens


class Failed(Exception):
    """The generation failed; the message is the engine's."""


class Vanished(Exception):
    """The engine stopped giving tokens without saying why."""


@dataclass(frozen=True, slots=True)
class Directive:
    text: str | None = None
    first_delay: float = 0
    delay: float = 0
    fail_prefill: str | None = None
    fail_at: int | None = None
    fail: str = "told to fail"
    vanish_at: int | None = None
    stall_at: int | None = None
    cut_at: int | None = None
    reset_at: int | None = None
    garbage_at: int | None = None
    exit_at: int | None = None
    held: bool = False
    pieces: int | None = None
    answer: dict[str, Any] | None = None

    @classmethod
    def of(cls, members: dict[str, Any]) -> Self:
        """Raises ValueError for a name that is none of the list above, so that a test's typing error is seen."""
        unknown = members.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"no such directive: {sorted(unknown)}")
        return cls(**members)


def find(prompt: str) -> Directive:
    """The last directive in the prompt, else one that changes nothing."""
    marked = _MARKED.findall(prompt)
    return Directive.of(json.loads(marked[-1], strict=False)) if marked else Directive()


def choose(exchange: Exchange, prompt: str) -> Directive:
    """What applies to this request: a queued fault before the prompt's own directive."""
    directive = Directive.of(exchange.fault) if exchange.fault is not None else find(prompt)
    exchange.piece_size = directive.pieces
    return directive


def is_endless(message: str) -> bool:
    return FOREVER_WORD in _MARKED.sub("", message)


def endless() -> Iterator[str]:
    return cycle(FOREVER_PIECES)


async def paced(
    tokens: Iterable[T], directive: Directive, exchange: Exchange, garbage: bytes, slow: float = 0
) -> AsyncGenerator[T, None]:
    """The tokens at the told pace, with the told faults between them; counts them in `exchange.tokens`.

    Raises Failed and Vanished. Where the connection is to break it breaks it, and then waits to be cancelled.
    """
    if directive.fail_prefill is not None:
        raise Failed(directive.fail_prefill)
    await asyncio.sleep(directive.first_delay)
    for number, token in enumerate(tokens):
        await _between(number, directive, exchange, garbage)
        await asyncio.sleep(max(directive.delay, slow))
        exchange.tokens = number + 1
        yield token
    await _between(exchange.tokens, directive, exchange, garbage)


async def _between(number: int, directive: Directive, exchange: Exchange, garbage: bytes) -> None:
    faults = (directive.fail_at, directive.vanish_at, directive.garbage_at, directive.reset_at, directive.cut_at)
    if directive.held and number in faults:
        await exchange.released()
    if number == directive.fail_at:
        raise Failed(directive.fail)
    if number == directive.vanish_at:
        raise Vanished
    if number == directive.exit_at:
        os._exit(9)
    if number == directive.garbage_at:
        await exchange.garble(garbage)
    if number == directive.reset_at:
        exchange.reset()
        await asyncio.Future()
    if number == directive.stall_at:
        await asyncio.Future()
    if number == directive.cut_at:
        await exchange.cut()
