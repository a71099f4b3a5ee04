"""A lease under everything at once: requests that come, stay and leave, a launcher that wants it back, breaks off or
says no. What must hold whatever the order is checked at every step; the order is random, by seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from proxy import gate as gate_module
from proxy.errors import ApiError
from proxy.gate import LeaseGate
from proxy.launcher_client import LauncherError
from tests.engines.process import PATIENCE

Event = dict[str, Any]


class World:
    """One engine and its launcher. `granted`: the lease counts; a request may only be inside while it does, unless the
    launcher itself has taken it away."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.open = 0
        self.opened = 0
        self.inside = 0
        self.asked_back = 0
        self.taken = False
        self.gate = LeaseGate("e", self.ensure, self.ready, alive=lambda: False, reachable=lambda: True)

    async def ensure(self) -> AsyncGenerator[Event, None]:
        assert self.open == 0, "two leases at once"
        self.open += 1
        self.opened += 1
        self.taken = False
        try:
            for step in range(self.dice.randrange(3)):
                await self.pause()
                yield {"event": "phase", "state": "starting", "phase": f"step {step}", "progress": step / 2}
            await self.pause()
            fate = self.dice.random()
            if fate < 0.1:
                yield {"event": "failed", "code": "engine_memory", "message": "no"}
                return
            if fate < 0.2:
                raise LauncherError("away")
            yield {"event": "ready", "engine": {}}
            await self.pause()
            if self.dice.random() < 0.5:
                self.asked_back += 1
                yield {"event": "yield", "reason": "memory"}
                yield {"event": "yield", "reason": "still"}
                if self.dice.random() < 0.7:
                    await asyncio.Event().wait()
            elif self.dice.random() < 0.5:
                await asyncio.Event().wait()
            self.taken = True
            yield {"event": "gone", "reason": "x"}
        finally:
            await asyncio.sleep(0)
            assert self.taken or self.inside == 0 or not self.gate.open
            self.open -= 1

    async def ready(self, _: Event) -> None:
        await self.pause()

    async def pause(self) -> None:
        for _ in range(self.dice.randrange(6)):
            await asyncio.sleep(0)

    async def request(self) -> str:
        await self.pause()
        try:
            await self.gate.enter()
        except ApiError as exc:
            return exc.code or ""
        self.inside += 1
        try:
            assert self.open == 1 or self.taken, "inside without a lease"
            await self.pause()
        finally:
            self.inside -= 1
            self.gate.leave()
        return "served"


@pytest.mark.parametrize("seed", range(150))
async def test_whatever_happens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "LEASE_IDLE", 0.0)
    world = World(seed)
    tasks = [asyncio.create_task(world.request()) for _ in range(40)]
    for task in tasks:
        await world.pause()
        if world.dice.random() < 0.3:
            task.cancel()
    async with asyncio.timeout(PATIENCE):
        results = await asyncio.gather(*tasks, return_exceptions=True)
        while world.gate.busy:
            await asyncio.sleep(0)

    assert set(map(str, results)) <= {"served", "engine_memory", "launcher_unavailable", ""}, "'' is a cancelled one"
    assert (world.gate._users, world.open, world.inside, len(world.gate._waiters)) == (0, 0, 0, 0)
    assert not world.gate.open
    await world.gate.close()
    with pytest.raises(ApiError):
        await world.gate.enter()


def lone(events: list[Event | Exception], *, alive: bool, reachable: bool) -> tuple[LeaseGate, list[str]]:
    """A gate whose launcher says this, and how often it was asked."""
    asked: list[str] = []

    async def ensure() -> AsyncGenerator[Event, None]:
        asked.append("ensure")
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    async def ready(_: Event) -> None:
        return

    return LeaseGate("e", ensure, ready, alive=lambda: alive, reachable=lambda: reachable), asked


async def test_a_launcher_that_is_known_to_be_away_is_not_asked_about_an_engine_that_answers() -> None:
    gate, asked = lone([], alive=True, reachable=False)
    await gate.enter()
    gate.leave()

    assert asked == []


async def test_a_launcher_that_turns_out_to_be_away_keeps_nobody_from_an_engine_that_answers() -> None:
    gate, asked = lone([LauncherError("away")], alive=True, reachable=True)
    await gate.enter()
    assert not gate.open
    gate.leave()

    assert asked == ["ensure"]


async def test_a_launcher_that_refuses_is_heeded_all_the_same() -> None:
    gate, _ = lone([LauncherError("There is no engine 'e'.", status=404)], alive=True, reachable=True)
    with pytest.raises(ApiError, match="There is no engine 'e'"):
        await gate.enter()


@pytest.mark.parametrize("alive", [True, False])
async def test_an_engine_that_was_never_ready_cannot_be_gone(alive: bool) -> None:
    """Else the next lease would be asked for at once, for ever."""
    gate, asked = lone([{"event": "gone", "reason": "It was stopped."}], alive=alive, reachable=True)
    with pytest.raises(ApiError, match=r"It was stopped\."):
        await gate.enter()

    assert asked == ["ensure"]


@pytest.mark.parametrize(
    ("progress", "shown"), [(None, "loading"), (0.5, "loading 50 %"), (7, "loading 100 %"), ("x", "loading")]
)
async def test_what_it_tells(progress: Any, shown: str) -> None:
    told = {"event": "phase", "state": "starting", "phase": " loading\n", "progress": progress}
    gate, _ = lone([told, {"event": "failed", "code": "engine_failed", "message": "x"}], alive=False, reachable=True)
    assert gate.told() == "waiting for 'e'"
    with pytest.raises(ApiError):
        await gate.enter()

    assert gate.told() == f"starting 'e': {shown}"
