"""Memory for a start: wait for one's turn on the GPU, have idle engines give theirs back, see that it came back.

Who has to go is decided in `memory`, how much is needed in `needs`, what is free is measured by `meters`; here it is
carried out. Starts on one GPU are serialised: while a model loads, what is free there means nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

from launchers.memory import Device, Evict, Fits, Never, Reading, Resident, Wait, Want, decide
from launchers.meters import Meter, MeterError
from launchers.needs import Needs
from launchers.spec import CPU, EngineSpec, SpecError

log = logging.getLogger("illm.launcher")

Say = Callable[[str, float | None], None]

SETTLE: Final = 3.0  # seconds until it is seen what a sleeper gave back, and what it keeps
COME_BACK: Final = 30.0  # seconds that memory may take to come back after its engine ended; drivers take a few
LOOK: Final = 0.5  # seconds between two looks while waiting


class CannotFit(SpecError):
    """There is no room, and won't be by waiting. The text says what holds the memory."""


class Occupant(Protocol):
    """An engine, as far as memory is concerned. `claim`: bytes that it was granted, None while it holds nothing."""

    @property
    def spec(self) -> EngineSpec: ...

    @property
    def fingerprint(self) -> str: ...

    claim: Mapping[Device, int] | None
    sleeps_on: tuple[Device, ...]  # where it has something left while it sleeps

    def resident(self) -> Resident | None:
        """What it holds at the moment, None for nothing; of a sleeper only on which devices."""

    async def evict(self, reason: str) -> None:
        """Returns when it has given its memory back; it may take as long as its requests."""

    def pids(self) -> list[int]:
        """Its processes. Blocks a little."""

    def held(self) -> Mapping[Device, int]:
        """What its processes are seen to hold; of a sleeper in RAM too, where its weights are. Blocks a little."""


class Room:
    """The memory of one machine. `budget` gives the declared limits in bytes."""

    def __init__(
        self,
        meter: Meter,
        budget: Callable[[], Mapping[Device, int]],
        needs: Needs,
        occupants: Callable[[], Iterable[Occupant]],
    ) -> None:
        self._meter = meter
        self._budget = budget
        self._needs = needs
        self._occupants = occupants
        self._turns: dict[Device, asyncio.Lock] = {}
        self._vacated: dict[Device, float] = {}  # when somebody last gave memory back there

    def measure_with(self, meter: Meter, budget: Callable[[], Mapping[Device, int]]) -> None:
        """From the next look on."""
        self._meter, self._budget = meter, budget

    async def read(self) -> tuple[Mapping[Device, Reading], Mapping[Device, int]]:
        """What every device has free now, and what is declared. Raises `CannotFit` for a budget file that can't be
        read."""
        try:
            return await asyncio.to_thread(self._look, list(self._occupants()))
        except MeterError as exc:
            raise CannotFit(str(exc)) from None

    def _look(self, occupants: Iterable[Occupant]) -> tuple[Mapping[Device, Reading], Mapping[Device, int]]:
        own = [pid for one in occupants for pid in one.pids()]  # no strangers, whatever the driver calls them
        readings = {device: reading.without(own) for device, reading in self._meter.read().items()}
        return readings, self._budget()  # after the look, which tells GPUs' UUIDs

    @asynccontextmanager
    async def admit(self, engine: Occupant, say: Say) -> AsyncIterator[None]:
        """Room for one start, which happens inside the block; sets `engine.claim`. Waits as long as others have their
        turn or must finish first. Raises `CannotFit`."""
        need = await self._need(engine)
        async with AsyncExitStack() as turns:
            for device in sorted(need):
                turn = self._turn(device)
                if turn.locked():
                    say(f"waiting for another start on {_name(device)}", None)
                await turn.acquire()
                turns.callback(turn.release)
            await self._make_room(engine, need, say)
            engine.claim = _claim(need)
            if set(need) == {CPU}:  # a claim is enough there: nothing else depends on who loads
                await turns.aclose()
            yield

    async def claim(self, engine: Occupant) -> Mapping[Device, int]:
        """For an engine that is running already."""
        return _claim(await self._need(engine))

    async def learn(self, engine: Occupant) -> None:
        """Note what a running engine holds, for its next start and for those beside it."""
        if engine.spec.memory is not None or engine.spec.image is not None:
            return  # of a container only docker's client is seen from here
        measured = await asyncio.to_thread(engine.held)
        if engine.claim is None:  # it ended meanwhile
            return
        try:
            news = self._needs.learn(engine.spec, engine.fingerprint, measured)
        except OSError as exc:
            log.warning("%s: what it needs can't be noted (%s)", engine.spec.name, exc)
            return
        if news:
            engine.claim = {**engine.claim, **measured}

    def vacate(self, engine: Occupant) -> None:
        """It holds nothing any more; the device may take a while to show that."""
        self._vacated |= dict.fromkeys((*(engine.claim or ()), *engine.sleeps_on), time.monotonic())
        engine.claim = None

    async def _need(self, engine: Occupant) -> dict[Device, int | None]:
        readings, budget = await self.read()
        there = {**dict.fromkeys(budget), **readings}
        return await asyncio.to_thread(self._needs.of, engine.spec, engine.fingerprint, there)

    def _turn(self, device: Device) -> asyncio.Lock:
        return self._turns.setdefault(device, asyncio.Lock())

    async def _make_room(self, engine: Occupant, need: Mapping[Device, int | None], say: Say) -> None:
        want, waited = Want(engine.spec.name, need), False
        while True:
            readings, budget = await self.read()
            residents = await self._residents()
            verdict = decide(want, residents, readings, budget)
            if isinstance(verdict, Fits):
                return
            if isinstance(verdict, Evict) and not (verdict.asleep and self._may_come_back(need, SETTLE)):
                await self._evict(verdict.names, engine, say)
                continue
            if isinstance(verdict, Wait):
                say(f"waiting for memory: {verdict.reason}", None)
                await asyncio.sleep(min(verdict.seconds or LOOK, LOOK))
                continue
            if isinstance(verdict, Evict):  # before a sleeper is ended: what others gave back may do
                say("waiting for memory to come back", None)
                await asyncio.sleep(LOOK)
                continue
            # As if all had come back that is gone: no waiting helps where even that isn't enough.
            hoped = {device: replace(reading, free=reading.total) for device, reading in readings.items()}
            if isinstance(decide(want, residents, hoped, budget), Never):
                raise CannotFit(verdict.reason)
            if not self._may_come_back(need, COME_BACK):
                late = f" What ended before it has not come back within {COME_BACK:g} s." if waited else ""
                raise CannotFit(verdict.reason + late)
            say("waiting for memory to come back", None)
            waited = True
            await asyncio.sleep(LOOK)

    def _may_come_back(self, devices: Iterable[Device], seconds: float) -> bool:
        """Whether somebody left one of these so lately that its memory may still be on its way."""
        never = -math.inf
        return max(self._vacated.get(device, never) for device in devices) + seconds > time.monotonic()

    async def _evict(self, names: Sequence[str], engine: Occupant, say: Say) -> None:
        said = ", ".join(names)
        say(f"waiting for {said} to make room", None)
        log.info("%s: needs the memory of %s", engine.spec.name, said)
        victims = [one for one in self._occupants() if one.spec.name in names]
        await asyncio.gather(*(one.evict(f"its memory is wanted for {engine.spec.name}") for one in victims))

    async def _residents(self) -> list[Resident]:
        """All that hold something, also the newcomer itself where it sleeps."""
        sleepers = [one for one in self._occupants() if one.sleeps_on]
        held = await asyncio.to_thread(lambda: {one.spec.name: one.held() for one in sleepers})
        found = [resident for one in self._occupants() if (resident := one.resident()) is not None]
        return [replace(r, need={**r.need, **held.get(r.name, {})}) if r.asleep else r for r in found]


def _claim(need: Mapping[Device, int | None]) -> dict[Device, int]:
    return {device: wanted or 0 for device, wanted in need.items()}


def _name(device: Device) -> str:
    return "the CPU" if device == CPU else f"GPU {device}"
