"""What others may ask of a launched engine, and how it looks to them.

Nobody here changes its state: wishes are left, and the engine's task (`engine`) acts on them. Not here: how it starts
and stops, and whether it may (`start`, `room`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from launchers import start as starts
from launchers.condition import Condition
from launchers.ledger import Ledger
from launchers.lifecycle import State
from launchers.logs import EngineLog
from launchers.mailbox import Board
from launchers.memory import Device, Resident
from launchers.process import Running
from launchers.room import Room
from launchers.spec import CPU, EngineSpec
from launchers.ticket import Ticket, Tickets

DRAIN: Final = 30.0  # seconds that requests under way have when a person or a reload stops their engine


@dataclass(frozen=True, slots=True)
class Stop:
    """A wish to stop. `drain`: seconds for requests under way, None: as long as they take."""

    reason: str
    drain: float | None
    asleep: bool = False  # it may sleep instead, where it can and is meant to
    at_once: bool = False  # its process gets no time to end well

    def and_(self, other: Stop | None) -> Stop:
        """Both wishes in one: the stricter of each."""
        if other is None:
            return self
        drains = [one.drain for one in (self, other) if one.drain is not None]
        return Stop(
            self.reason,
            min(drains, default=None),
            asleep=self.asleep and other.asleep,
            at_once=self.at_once or other.at_once,
        )


@dataclass(frozen=True, slots=True)
class House:
    """What all engines of a launcher share."""

    means: starts.Means
    room: Room
    board: Board
    ledger: Ledger
    measure: Callable[[Collection[Device], list[int]], Mapping[Device, int]]  # what those processes hold there


class Wishes:
    """The half of an engine that others see; every method may be called at any time from the same loop. A
    `room.Occupant`."""

    def __init__(self, spec: EngineSpec, house: House, output: EngineLog) -> None:
        """Raises `SpecError` where that can't be launched."""
        self.spec = spec
        self.fingerprint = starts.fingerprint(spec)
        self.output = output
        self.claim: Mapping[Device, int] | None = None
        self.sleeps_on: tuple[Device, ...] = ()  # the devices of its claim before it slept; empty: it doesn't
        self.condition = Condition()
        self.tickets = Tickets()
        self._house = house
        self._running: Running | None = None  # the process, from its first moment, and also while it sleeps
        self._base_url = ""
        self._code: starts.Code = "engine_failed"  # what kind of failure it was given up for
        self._keep = spec.start == "eager"  # wanted although nobody waits
        self._stop: Stop | None = None
        self._successor: EngineSpec | None = None  # takes over once it has stopped
        self._closing: str | None = None  # why it is ended for good
        self._over = False  # its task has ended: nobody acts on wishes any more
        self._poked = asyncio.Event()  # there is a wish
        self._changed = asyncio.Event()  # set, and replaced, with every change

    # --- wishes -----------------------------------------------------------------------------------------------------

    def ensure(self, *, lease: bool = True) -> Ticket:
        """Ask for the engine; the ticket tells how it goes. Give it back with `release`. Without `lease` a person asks:
        it is wanted from now on, and what was given up is tried again."""
        ticket = Ticket(lease=lease)
        if self._closing is not None:
            ticket.failed("engine_stopped", self._was_stopped(self._closing))
        elif self.state == "fatal" and lease:
            advice = f"Mend that, then `illm start {self.spec.name}` tries again."
            ticket.failed(self._code, f"{self.condition.error}\n{advice}")
        else:
            self._keep = self._keep or not lease
            ticket.phase(self.state, self.condition.phase, self.condition.progress)
            self.tickets.add(ticket)
            self._show()
        self._poke()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Nobody reads the ticket any more; a lease ends with it."""
        self.tickets.release(ticket)
        self._show()
        self._poke()

    async def stop(self, reason: str, *, drain: float = DRAIN) -> None:
        """Returns when it has stopped. Whoever waits for it is told so."""
        self._keep = False
        self.tickets.refuse("engine_stopped", self._was_stopped(reason))
        await self._stopped_by(Stop(reason, drain))

    async def evict(self, reason: str) -> None:
        """Returns when it has given its memory back, after the requests under way; who waits for it goes on waiting.
        Awake it may sleep, asleep it has to end."""
        self._keep = False
        await self._stopped_by(Stop(reason, None, asleep=not self.sleeps_on))

    async def replace(self, spec: EngineSpec) -> None:
        """Take a new specification over. The process ends only where it was told something else, and starts again if it
        was running. Returns when that is under way. Raises `SpecError`."""
        if starts.fingerprint(spec) == self.fingerprint:
            self._keep = self._keep or (spec.start == "eager" and self.spec.start != "eager")
            self.spec = spec
            self._show()
            self._poke()
            return
        self._keep = self._keep or self.state in ("starting", "ready", "backoff") or spec.start == "eager"
        self._successor = spec
        await self._stopped_by(Stop("its settings have changed", DRAIN))

    async def close(self, reason: str, *, drain: float) -> None:
        """End it for good, its process too if it sleeps. Its task ends."""
        self._closing = reason
        await self.stop(reason, drain=drain)

    def hurry(self) -> None:
        """Where it is to stop: requests under way get no more time, and its process none to end well."""
        if self._stop is None:
            return
        self._stop = replace(self._stop, drain=0, at_once=True)
        if self._running is not None and self.state in ("starting", "stopping"):
            self._running.ask_to_stop(0)
        self._poke()

    def end(self, why: str) -> None:
        """Its task has ended, by `close` or else for that reason: nobody acts on wishes any more, and nobody is to wait
        for that."""
        self._closing = self._closing or why
        self.tickets.refuse("engine_stopped", self._was_stopped(self._closing))
        self._over = True
        self._tell()

    def adopt(self, running: Running, base_url: str, claim: Mapping[Device, int]) -> None:
        """Take over a process that another launcher started; before its task runs."""
        self._running, self._base_url, self.claim = running, base_url, claim
        self.condition.move("adopt")

    # --- what it is like --------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.condition.state

    def row(self) -> dict[str, Any]:
        """What the control API shows of it."""
        return self.condition.row(self.spec, self._running, self.tickets, self.claim)

    def resident(self) -> Resident | None:
        """See `room.Occupant`."""
        if self.claim is None and not self.sleeps_on:
            return None
        asleep = self.claim is None
        return Resident(
            name=self.spec.name,
            need=dict.fromkeys(self.sleeps_on, 0) if self.claim is None else self.claim,
            pinned=self.spec.pin,
            leases=self.tickets.leases,
            starting=self.state == "starting" and not asleep,
            ready_for=self.condition.ready_for(),
            idle_for=self.condition.unchanged_for() if asleep else self.condition.idle_for(self.tickets),
            min_residency=0.0 if asleep else self.spec.min_residency,
            stopping=self.state == "stopping",
            asleep=asleep,
        )

    def guards(self) -> list[int]:
        """The processes of its that somebody waits for."""
        return [self._running.record.guard_pid] if self._running is not None else []

    def pids(self) -> list[int]:
        """See `room.Occupant`."""
        return self._running.pids() if self._running is not None else []

    def held(self) -> Mapping[Device, int]:
        """See `room.Occupant`."""
        devices = (*self.sleeps_on, CPU) if self.claim is None and self.sleeps_on else tuple(self.claim or ())
        if self._running is None or not devices:
            return {}
        return self._house.measure(devices, self._running.pids())

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _stopped_by(self, stop: Stop) -> None:
        if self._over:
            return
        self._stop = stop.and_(self._stop)
        self._poke()
        while self._stop is not None and not self._over:
            await self._changed.wait()

    def _was_stopped(self, reason: str) -> str:
        return f"Engine '{self.spec.name}' was stopped: {reason}."

    def _show(self) -> None:
        """What it is like now, to those who follow all engines."""
        if not self._over:  # else they were told, or will be, that it is no longer there
            self._house.board.tell(self.spec.name, {"event": "engine", "engine": self.row()})

    def _tell(self) -> None:
        """The same, and to those who wait for it."""
        self._show()
        self.tickets.phase(self.state, self.condition.phase, self.condition.progress)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _poke(self) -> None:
        self._poked.set()
