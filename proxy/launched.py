"""The engines that a launcher runs, as backends: follows its events and keeps the registry as they tell.

Every engine is routable at once, also while it is stopped; its gate (`gate`) has it started. Once it is ready it is
asked who it is and watched like any other backend. Where the launcher can't be reached, engines that were ready stay:
probes judge them. Not here: HTTP (`launcher_client`), what a row means (`engine_rows`), leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final

from proxy.engine_rows import NOWHERE, Row, Unreachable, settings
from proxy.errors import error
from proxy.gate import LeaseGate
from proxy.health import HealthLoop
from proxy.launcher_client import Address, LauncherClient, LauncherError, left_over
from proxy.pool import Backend
from proxy.registry import Registry
from proxy.settings import BackendSettings, Settings

log = logging.getLogger("illm")

Revive = Callable[[], str]  # starts a launcher that died; blocks; what it did, for people; raises `LauncherError`
# Starts this machine's launcher where there was nothing to launch before; blocks; raises `LauncherError`.
Launch = Callable[[Settings], tuple[Address, Revive | None]]

FIRST_WAIT: Final = 0.2  # seconds before a launcher that is away is asked again; twice as long each time
LONGEST_WAIT: Final = 5.0
QUIET: Final = ("keep", "left")  # of what a reload tells: nothing changes there


class Mirror:
    """One engine here. `process`: which one the backend stands for; `fault`: why it can't be used although it runs;
    `listed`: the only model that it lists, by its own name."""

    def __init__(self, row: Row, backend: Backend, gate: LeaseGate) -> None:
        self.row = row
        self.backend = backend
        self.gate = gate
        self.process: tuple[object, ...] | None = None
        self.fault = ""
        self.listed: str | None = None
        self.look: asyncio.Task[None] | None = None  # asks it who it is


class Launched:
    """The engines of one launcher. Whoever makes it calls `start`, and `close` when no request is under way. `revive`:
    called when the launcher is gone, so that this gateway's own engines come back by themselves."""

    def __init__(self, address: Address, registry: Registry, health: HealthLoop, revive: Revive | None = None) -> None:
        self.name = address.name
        self.address = address
        self.telling = False  # the log is told how its engines change; at first, the start-up text says how they are
        self._registry = registry
        self._health = health
        self._revive = revive
        self._client = LauncherClient(address)
        self._mirrors: dict[str, Mirror] = {}
        self._displaced: list[Row] = []
        self._retired: list[LeaseGate] = []
        self._connected = False
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow it from now on."""
        self._registry.launchers[self.name] = f"Launcher '{self.name}' was not asked yet."
        self._registry.unasked.add(self.name)
        self._task = asyncio.create_task(self._follow(), name=f"launcher '{self.name}'")

    async def first_round(self, patience: float) -> None:
        """Until its engines are known and the ready ones were looked at, at most `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._asked.wait()
                looks = [mirror.look for mirror in self._mirrors.values() if mirror.look is not None]
                if looks:
                    await asyncio.wait(looks)

    async def close(self) -> None:
        """Give all leases back; its engines are left as they are."""
        looks = [mirror.look for mirror in self._mirrors.values() if mirror.look is not None]
        tasks = [task for task in (self._task, *looks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for gate in (*self._retired, *(mirror.gate for mirror in self._mirrors.values())):
            await gate.close()
        await self._client.aclose()

    async def reload(self) -> None:
        """Have the launcher read its settings anew; what came of it is in the log."""
        try:
            done = await self._client.reload()
        except LauncherError as exc:
            log.error("launcher '%s' goes on as it was: %s", self.name, exc)
            return
        changes = [
            f"{what} {', '.join(map(str, names))}" for what, names in done.items() if names and what not in QUIET
        ]
        log.info("launcher '%s' has read its settings: %s", self.name, "; ".join(changes) or "nothing changes")
        if left := left_over(done):
            log.warning("launcher '%s': %s", self.name, left)

    def make_room(self, names: Collection[str]) -> None:
        """Those backends' names are wanted for others: take mirrors out that have them, until `refill`."""
        for mirror in [m for m in self._mirrors.values() if m.backend.name in names]:
            self._displaced.append(mirror.row)
            self._drop(mirror)

    def refill(self) -> None:
        """Put in again what had to make room, under other names."""
        while self._displaced:
            self._update(self._displaced.pop())

    # -- following -------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                async with aclosing(self._client.events()) as events:
                    async for event in events:
                        wait = FIRST_WAIT
                        self._take(event)
                reason = (
                    f"Launcher '{self.name}' has ended. Its engines can be started when it is back (`illm launch`)."
                )
            except LauncherError as exc:
                reason = str(exc)
            except Exception:  # a bug must not end the following: the engines would keep their last state for ever
                log.exception("following launcher '%s'", self.name)
                reason = f"Launcher '{self.name}' told something that the gateway failed on. Its log has the details."
            self._away(reason)
            await asyncio.sleep(wait)
            if self._revive is not None and wait > FIRST_WAIT:  # it was asked again, and isn't there
                await self._bring_back(self._revive)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _bring_back(self, revive: Revive) -> None:
        try:
            log.warning("%s", await asyncio.to_thread(revive))
        except LauncherError as exc:
            log.error("launcher '%s' can't be brought back: %s", self.name, exc)

    def _take(self, event: dict[str, Any]) -> None:
        name = event.get("event")
        if name == "engines":
            rows = [row for value in event.get("engines") or () if (row := Row.read(value)) is not None]
            self._back(rows)
        elif name == "engine":
            row = Row.read(event.get("engine"))
            if row is not None:
                self._update(row)
        elif name == "removed" and (mirror := self._mirrors.get(str(event.get("name")))) is not None:
            self._drop(mirror)

    def _back(self, rows: list[Row]) -> None:
        """All that it has, at the beginning of a connection."""
        if not self._connected:
            self._connected = True
            log.info("launcher '%s' has %s", self.name, ", ".join(f"'{row.name}'" for row in rows) or "no engines")
        self._registry.launchers[self.name] = ""
        names = {row.name for row in rows}
        for mirror in [m for m in self._mirrors.values() if m.row.name not in names]:
            self._drop(mirror)
        for row in rows:
            self._update(row)
        for mirror in self._mirrors.values():
            if mirror.row.state == "ready":
                mirror.gate.renew()
        self._heard()

    def _away(self, reason: str) -> None:
        if self._connected or not self._asked.is_set():
            log.warning("%s", reason)
        self._connected = False
        self._registry.launchers[self.name] = reason
        for mirror in self._mirrors.values():
            if mirror.row.state != "ready":
                self._show(mirror)
        self._heard()

    def _heard(self) -> None:
        """Of it, or that there is nothing to be heard."""
        self._registry.unasked.discard(self.name)
        self._asked.set()

    # -- one engine ------------------------------------------------------------------------------------------

    def _update(self, row: Row) -> None:
        mirror = self._mirrors.get(row.name)
        if mirror is None:
            mirror = self._mirrors[row.name] = self._new(row)
            self._apply(mirror, row)
            self._registry.add(mirror.backend)
        else:
            self._apply(mirror, row)

    def _new(self, row: Row) -> Mirror:
        taken = row.name in self._registry.backends
        backend = Backend(f"{row.name}@{self.name}" if taken else row.name, BackendSettings(base_url=NOWHERE))
        gate = LeaseGate(
            backend.name,
            ensure=partial(self._client.ensure, row.name),
            ready=lambda event: self._ready(mirror, event),
            alive=lambda: backend.state == "ready",
            reachable=lambda: self._connected,
        )
        backend.gate = gate
        mirror = Mirror(row, backend, gate)
        return mirror

    def _drop(self, mirror: Mirror) -> None:
        """It is there no more. What is under way goes on, and keeps its lease."""
        del self._mirrors[mirror.row.name]
        self._health.forget(mirror.backend.name)
        if mirror.look is not None:
            mirror.look.cancel()
        self._registry.remove(mirror.backend.name)
        self._retired = [gate for gate in (*self._retired, mirror.gate) if gate.busy]

    async def _ready(self, mirror: Mirror, event: dict[str, Any]) -> None:
        """A lease is there: make sure that its engine is known before anything is sent. Raises `ApiError`."""
        row = Row.read(event.get("engine"))
        if row is None or self._mirrors.get(row.name) is not mirror:
            raise error("engine_stopped", f"Engine '{mirror.row.name}' was taken out of its launcher's settings.")
        self._apply(mirror, replace(row, state="ready"))
        if mirror.fault:
            raise error("launcher_unavailable", mirror.fault)
        while mirror.look is not None and not mirror.look.done():
            await asyncio.wait([mirror.look])

    def _apply(self, mirror: Mirror, row: Row) -> None:
        backend = mirror.backend
        before = backend.state, backend.settings
        changed = backend.engine is None or backend.engine.state != row.state
        mirror.row = row
        backend.engine = row.engine(self.name)
        backend.upstream = row.upstream or mirror.listed
        if row.state == "ready":
            self._meet(mirror)
        else:
            self._part(mirror)
        if changed and self.telling and row.state != "ready":
            why = f": {backend.detail}" if row.state in ("backoff", "fatal") else ""
            log.info("engine '%s' is %s%s", backend.name, row.state, why)
        if before != (backend.state, backend.settings):
            self._registry.rebuild()

    def _meet(self, mirror: Mirror) -> None:
        """It is ready: ask it who it is, unless that was done."""
        backend = mirror.backend
        if mirror.process != mirror.row.process:
            self._health.forget(backend.name)
            if mirror.look is not None:
                mirror.look.cancel()
                mirror.look = None
            mirror.process, mirror.fault, mirror.listed = mirror.row.process, "", None
            backend.upstream = mirror.row.upstream
            try:
                backend.move(settings(mirror.row, self.address))
            except Unreachable as exc:
                mirror.fault = str(exc)
        if mirror.fault:
            backend.state, backend.detail = "down", mirror.fault
        elif mirror.look is None:
            backend.state = "unknown"
            mirror.look = asyncio.create_task(self._look(mirror), name=f"first look at '{backend.name}'")

    def _part(self, mirror: Mirror) -> None:
        """It isn't ready (any more)."""
        backend, row = mirror.backend, mirror.row
        self._health.forget(backend.name)
        if mirror.look is not None and mirror.look.done():
            mirror.look = None
        known = backend.settings
        if (known.kind, known.model) != (row.kind, row.model):
            backend.configure(known.model_copy(update={"kind": row.kind, "model": row.model}))
        self._show(mirror)

    def _show(self, mirror: Mirror) -> None:
        """The state of an engine that isn't ready."""
        backend = mirror.backend
        backend.state, backend.detail = mirror.row.seen()
        if not self._connected:
            backend.state, backend.detail = "down", self._registry.launchers[self.name]

    async def _look(self, mirror: Mirror) -> None:
        backend = mirror.backend
        await self._health.look(backend)
        names = [model.id for model in backend.models] if backend.state == "ready" else []
        if len(names) == 1 and names[0] != mirror.row.model:  # it couldn't be told the public name
            mirror.listed = names[0]
            backend.upstream = mirror.row.upstream or mirror.listed
        if mirror.row.state == "ready":
            self._health.watch(backend, asked=True)
        else:  # it ended meanwhile
            mirror.look = None
            self._show(mirror)
