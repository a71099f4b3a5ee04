"""Two real models that have room for one: they swap under mixed load, and nothing is lost."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.models import Gguf
from tests.engines.process import PATIENCE
from tests.engines.speech import TEXT
from tests.launched.support import HI, Host, llama

pytestmark = pytest.mark.slow

REQUESTS = 200
AT_A_TIME = 8


async def one(client: httpx.AsyncClient, model: str, stream: bool) -> tuple[str, str]:
    """(model, text) of an answer."""
    body = {"model": model, "messages": HI, "stream": stream}
    if not stream:
        answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
        return answer["model"], answer["choices"][0]["message"]["content"]
    text, said = "", ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.raise_for_status().aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                said = chunk["model"]
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return said, text


async def resident_together(host: Host, end: asyncio.Event) -> set[frozenset[str]]:
    """Which engines held memory at once, as the launcher's events tell it."""
    holding: dict[str, bool] = {}
    seen: set[frozenset[str]] = set()
    (socket,) = (host.folder / "s").glob("*/launcher.sock")
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    client = httpx.AsyncClient(transport=transport, base_url="http://launcher", timeout=None)
    async with client, client.stream("GET", "/events") as events:
        async for line in events.aiter_lines():
            event: dict[str, Any] = json.loads(line)
            for row in event.get("engines", [event["engine"]] if "engine" in event else []):
                holding[row["name"]] = row["pid"] is not None
            seen.add(frozenset(name for name, holds in holding.items() if holds))
            if end.is_set():
                break
    return seen


async def test_two_hundred_mixed_requests_swap_two_models_and_none_is_lost(
    llama_program: Path, tiny_models: Gguf
) -> None:
    engine = llama(llama_program, tiny_models.chat, memory="60MiB", args=["-np", "4", "-c", "40000"])
    chance = random.Random(3)
    asked = [(chance.choice(("left", "right")), chance.random() < 0.5) for _ in range(REQUESTS)]
    with Host({"left": engine, "right": engine}, budget={"cpu": "100MiB"}) as host:
        end = asyncio.Event()
        watching = asyncio.create_task(resident_together(host, end))
        turns = asyncio.Semaphore(AT_A_TIME)

        async def in_turn(client: httpx.AsyncClient, model: str, stream: bool) -> tuple[str, str]:
            async with turns:
                return await one(client, model, stream)

        async with httpx.AsyncClient(base_url=host.url, timeout=PATIENCE, trust_env=False) as client:
            answers = await asyncio.gather(*(in_turn(client, model, stream) for model, stream in asked))
        end.set()
        await asyncio.to_thread(host.ask, "left")  # one more event for the watcher
        await asyncio.to_thread(host.ask, "right")
        seen = await asyncio.wait_for(watching, PATIENCE)
        swaps = host.launcher_log().count("-> starting")

    assert answers == [(model, TEXT) for model, _ in asked]
    assert swaps > 4
    assert frozenset(("left", "right")) not in seen
    assert {frozenset(("left",)), frozenset(("right",))} <= seen
