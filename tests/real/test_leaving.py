"""Clients that leave before their answer is whole: the engine really stops, it has not merely finished.

The proof is the engine's own: it was generating, and when its slot is idle after the client left, it has counted fewer
tokens than it was asked for. To make them all it takes a minute.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess, wait_until
from tests.real.support import (
    CHAT,
    ENDLESS,
    HI,
    MANY,
    access_lines,
    busy,
    decoded,
    generating,
    get,
    one_engine,
    post,
    row,
)

PATH = "/v1/chat/completions"


@pytest.fixture
def engine(start_llama: StartLlamaServer) -> ServerProcess:
    return start_llama("-np", "1", "--alias", CHAT)


@pytest.fixture
def gateway(engine: ServerProcess, start_gateway: Callable[..., Gateway]) -> Gateway:
    return start_gateway(one_engine(engine.base_url)).wait_models(CHAT)


@asynccontextmanager
async def clients(gateway: Gateway) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    limits: Any = {"api_key": "unused", "max_retries": 0, "timeout": PATIENCE}
    async with (
        openai.AsyncOpenAI(base_url=gateway.v1, **limits) as sdk,
        anthropic.AsyncAnthropic(base_url=gateway.base_url, **limits) as claude,
    ):
        yield sdk, claude


async def ask(gateway: Gateway, how: str) -> None:
    """An endless answer, which this task is cancelled out of."""
    async with clients(gateway) as (sdk, claude):
        match how:
            case "chat":
                await sdk.chat.completions.create(model=CHAT, messages=ENDLESS, max_tokens=MANY)
            case "chat stream":
                chat = await sdk.chat.completions.create(model=CHAT, messages=ENDLESS, max_tokens=MANY, stream=True)
                [chunk async for chunk in chat]
            case "completion":
                await sdk.completions.create(model=CHAT, prompt="hi<|forever|>", max_tokens=MANY)
            case "completion stream":
                text = await sdk.completions.create(model=CHAT, prompt="hi<|forever|>", max_tokens=MANY, stream=True)
                [piece async for piece in text]
            case "responses":
                await sdk.responses.create(model=CHAT, input="forever", max_output_tokens=MANY)
            case "responses stream":
                events = await sdk.responses.create(model=CHAT, input="forever", max_output_tokens=MANY, stream=True)
                [event async for event in events]
            case "messages":
                await claude.messages.create(model=CHAT, messages=ENDLESS, max_tokens=MANY, timeout=PATIENCE)
            case "messages stream":
                turns = await claude.messages.create(model=CHAT, messages=ENDLESS, max_tokens=MANY, stream=True)
                [turn async for turn in turns]


def made(engine: ServerProcess) -> int:
    """Tokens that the engine has generated in answers that are over."""
    lines = get(f"{engine.base_url}/metrics").text.splitlines()
    (count,) = [line.split()[1] for line in lines if line.startswith("llamacpp:tokens_predicted_total ")]
    return int(count)


async def leave(asking: asyncio.Task[None]) -> None:
    assert not asking.done(), asking
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("api", ["chat", "completion", "responses", "messages"])
async def test_in_the_middle_of_an_answer(gateway: Gateway, engine: ServerProcess, api: str) -> None:
    for how in (api, f"{api} stream"):
        before = made(engine)
        asking = asyncio.create_task(ask(gateway, how))
        await asyncio.to_thread(wait_until, lambda: decoded(engine) > 20, f"{how}: the engine generates")
        await leave(asking)
        await asyncio.to_thread(wait_until, lambda: not busy(engine), f"{how}: the engine stops")
        assert 0 < made(engine) - before < MANY, f"{how}: it did not stop, it came to its end"
    lines = access_lines(gateway, {"chat": PATH, "completion": "/v1/completions"}.get(api, f"/v1/{api}"), 2)
    assert [line["status"] for line in lines] == [499, 499]
    assert row(gateway)["in_flight"] == 0
    assert row(gateway)["state"] == "ready"  # no strike against it
    assert post(gateway.base_url, PATH, {"model": CHAT, "messages": HI}).status_code == 200


@pytest.mark.parametrize("how", ["chat", "chat stream"])
async def test_while_it_waits_for_a_slot(gateway: Gateway, engine: ServerProcess, how: str) -> None:
    running = asyncio.create_task(ask(gateway, "chat stream"))
    await asyncio.to_thread(wait_until, generating(engine), "the engine generates")
    waiting = asyncio.create_task(ask(gateway, how))
    await asyncio.to_thread(wait_until, lambda: row(gateway)["in_flight"] == 2, "both are under way")
    await leave(waiting)
    await asyncio.to_thread(wait_until, lambda: row(gateway)["in_flight"] == 1, "the gateway has let go of it")
    assert [line["status"] for line in access_lines(gateway, PATH)] == [499]
    assert busy(engine), "the answer that was under way goes on"
    assert not running.done()
    await leave(running)
    await asyncio.to_thread(wait_until, lambda: not busy(engine), "the engine stops")
    await asyncio.to_thread(post, engine.base_url, PATH, {"messages": HI})  # behind all that is in its queue
    assert made(engine) < MANY, "it began the other"
