"""Checks of clients that leave before their answer is whole: the proof is the engine's own idleness."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import openai

from tests.conformance.clients import async_sdk
from tests.conformance.outcome import Ignored
from tests.conformance.subjects import CONTEXT, Subject
from tests.engines.process import PATIENCE, POLL, StillSo, wait_until
from tests.engines.speech import FOREVER_WORD

STARTS_WITHIN = PATIENCE  # seconds between a request and the engine's being busy
STOPS_WITHIN = 5.0  # seconds between a client's leaving and the engine's being idle; an endless answer takes many more
ENDLESS: Any = [{"role": "user", "content": f"{FOREVER_WORD}, please"}]


def cancel_stream(subject: Subject) -> None:
    """The client closes a running stream: the engine stops."""

    async def leave(client: openai.AsyncOpenAI) -> None:
        create = client.chat.completions.create
        running = await create(model=subject.chat, messages=ENDLESS, max_tokens=CONTEXT - 100, stream=True)
        async for chunk in running:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await seen_busy(subject)
        await running.close()

    check_idle_after(subject, leave)


def cancel_plain(subject: Subject) -> None:
    """The client leaves a plain request before its answer: the engine stops."""

    async def leave(client: openai.AsyncOpenAI) -> None:
        create = client.chat.completions.create
        asked = asyncio.ensure_future(create(model=subject.chat, messages=ENDLESS, max_tokens=CONTEXT - 100))
        busy = asyncio.ensure_future(seen_busy(subject))
        await asyncio.wait((asked, busy), return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            busy.cancel()
            raise StillSo(f"answered before the client could leave: {asked.result()!r:.300}")
        await busy
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked

    check_idle_after(subject, leave)


async def seen_busy(subject: Subject) -> None:
    """Returns once the engine computes; raises StillSo."""
    try:
        async with asyncio.timeout(STARTS_WITHIN):
            while not await asyncio.to_thread(subject.busy):
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise StillSo(f"the engine was idle for {STARTS_WITHIN:g} s after the request") from None


def check_idle_after(subject: Subject, leave: Callable[[openai.AsyncOpenAI], Awaitable[None]]) -> None:
    async def run() -> None:
        async with async_sdk(subject) as client:
            await leave(client)

    # Twice at most: vLLM's metrics were seen to stand still on busy machines, so that a start can go unseen; and where
    # the machine itself stood still, an endless answer may have come to its end, or its stop have been late.
    for tries_left in (1, 0):
        wait_until(lambda: not subject.busy(), "the engine is idle before the check")
        try:
            asyncio.run(run())
        except StillSo:
            if not tries_left:
                raise
            continue
        try:
            wait_until(lambda: not subject.busy(), "the engine stops when the client leaves", STOPS_WITHIN)
        except StillSo as reason:
            if not tries_left:
                raise Ignored(str(reason)) from None
        else:
            return
