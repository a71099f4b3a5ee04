"""The first moments of a gateway: a request waits for who hasn't been heard yet, for so long; then it is told who that
is, and not that its model doesn't exist."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy import endpoints
from tests.faults.support import CHAT_PATH, REPLY
from tests.proxy.harness import PATIENCE, Engine, Got, Line, gateway

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


class Late(Engine):
    """Tells its models only once it is let to."""

    def hold(self) -> asyncio.Event:
        self.go = asyncio.Event()
        return self.go

    async def _about(self, got: Got, line: Line) -> None:
        await self.go.wait()
        await super()._about(got, line)


async def replies(_: Got, line: Line) -> None:
    await line.reply(200, REPLY)


SOON = 0.01  # seconds that the start itself waits for engines


@pytest.mark.interpreted
@pytest.mark.parametrize("named", [{}, {"model": "m"}])
async def test_it_waits_for_the_first_answer(named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SETTLING", PATIENCE)
    late = Late(replies)
    go = late.hold()
    await late.listen()
    async with gateway({"backends": {"b": {"kind": "openai", "base_url": late.root}}}, first_round=SOON) as gate:
        asked = asyncio.create_task(gate.client.post(CHAT_PATH, json=ASKED | named))
        await asyncio.sleep(0.1)
        assert not asked.done()
        go.set()
        assert (await asked).status_code == 200
    await late.close()


@pytest.mark.interpreted
@pytest.mark.parametrize("named", [{}, {"model": "m"}])
async def test_it_does_not_wait_for_ever(named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SETTLING", 0.1)
    late = Late(replies)
    go = late.hold()
    await late.listen()
    async with gateway({"backends": {"slow": {"kind": "openai", "base_url": late.root}}}, first_round=SOON) as gate:
        refused = await gate.client.post(CHAT_PATH, json=ASKED | named)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], refused.headers["retry-after"]) == (503, "model_loading", "1")
        assert "it waits for backend 'slow'" in error["message"]
        go.set()
    await late.close()


@pytest.mark.interpreted
async def test_what_is_known_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SETTLING", 10 * PATIENCE)
    late, there = Late(replies), Engine(replies)
    late.hold()
    await late.listen()
    await there.listen()
    backends = {
        "slow": {"kind": "openai", "base_url": late.root},
        "fast": {"kind": "openai", "base_url": there.root, "model": "n"},
    }
    async with gateway({"backends": backends}, first_round=SOON) as gate, asyncio.timeout(PATIENCE):
        assert (await gate.client.post(CHAT_PATH, json=ASKED | {"model": "n"})).status_code == 200
        late.go.set()
    await late.close()
    await there.close()


async def test_a_name_that_nobody_has_is_unknown_once_all_have_answered() -> None:
    there = Engine(replies)
    await there.listen()
    async with gateway({"backends": {"b": {"kind": "openai", "base_url": there.root}}}) as gate:
        refused = await gate.client.post(CHAT_PATH, json=ASKED | {"model": "no"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    await there.close()


async def test_the_demo_engine_lists_its_model_before_anybody_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first curl is told that `model` is missing."""

    async def later(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("proxy.local.LOCAL_PORTS", {})
    monkeypatch.setattr("proxy.health.HealthLoop.look", later)  # as on a busy machine
    told = {"discovery": {"local": True}, "demo": True, "health": {"interval": 60}}
    async with gateway(told, first_round=SOON) as gate:
        assert list(gate.gateway.registry.snapshot.routes) == ["demo"]
        assert (await gate.client.post(CHAT_PATH, json=ASKED)).status_code == 200
