"""What probes may and may not do: no request waits for one, busy is not dead, loading is not down."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.faults.support import CHAT, CHAT_PATH, REPLY, never, ok, strikes
from tests.proxy.harness import Engine, Got, Line, gateway, one_backend, until


class Moody(Engine):
    """Its GETs answer as `mood` says. None is not at all: each breaks off once there is something in `breaks`."""

    mood: tuple[int, bytes] | None = None
    asked = 0
    breaks: asyncio.Semaphore

    async def _about(self, got: Got, line: Line) -> None:
        self.asked += 1
        if self.mood is not None:
            await line.reply(*self.mood)
        else:
            await self.breaks.acquire()
            line.drop()


LIST = (200, b'{"object":"list","data":[{"id":"up","object":"model","owned_by":"vllm"}]}')


async def test_models_are_told_while_a_backend_hangs() -> None:
    hangs = Moody(never)
    hangs.breaks = asyncio.Semaphore(0)
    await hangs.listen()
    try:
        settings: dict[str, Any] = one_backend(hangs.root) | {"health": {"timeout": 600, "interval": 600}}
        async with gateway(settings, first_round=0) as gate:
            listed = await gate.client.get("/v1/models")
            health = await gate.client.get("/healthz")

            assert [model["id"] for model in listed.json()["data"]] == ["pub"]
            assert health.status_code == 200
            assert hangs.asked == 1  # and not answered yet
    finally:
        await hangs.close()


async def test_a_busy_engine_that_answers_requests_stays_in() -> None:
    """Its probes fail, one more than it takes to be down; between them it answers, slowly but well."""
    busy = Moody(ok)
    busy.breaks = asyncio.Semaphore(0)
    busy.mood = LIST
    await busy.listen()
    try:
        settings: dict[str, Any] = one_backend(busy.root, "openai") | {"health": {"interval": 0.01, "down_after": 3}}
        async with gateway(settings) as gate:
            one = gate.gateway.registry.backends["b"]
            await until(lambda: one.state == "ready")
            busy.mood = None
            for _ in range(4):
                busy.breaks.release()
                await until(lambda: one.failures == 1)
                assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
                assert (one.state, one.failures) == ("ready", 0)
            for _ in range(3):
                busy.breaks.release()
            await until(lambda: one.state == "down")  # nothing speaks for it any more

            assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200  # but it is still tried
            busy.mood = LIST
            busy.breaks.release()
            await until(lambda: one.state == "ready")
    finally:
        await busy.close()


async def test_loading_is_not_down() -> None:
    said = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'

    async def handler(_: Got, line: Line) -> None:
        await line.reply(*((503, said) if loads.mood != LIST else (200, REPLY)))

    loads = Moody(handler)
    loads.mood = (503, said)
    await loads.listen()
    try:
        settings: dict[str, Any] = one_backend(loads.root, "llamacpp") | {"health": {"interval": 0.02}}
        async with gateway(settings) as gate:
            one = gate.gateway.registry.backends["b"]
            await until(lambda: loads.asked >= 5)
            assert one.state == "loading"
            reply = await gate.client.post(CHAT_PATH, json=CHAT)

            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
            assert reply.headers["retry-after"] == "5"
            assert strikes(gate) == 0
            loads.mood = LIST
            await until(lambda: one.state == "ready")
            assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
    finally:
        await loads.close()
