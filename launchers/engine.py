"""One launched engine: the task that owns its state.

Nobody else changes the state. Others leave wishes (`wishes`) and the task acts on them; each state has one coroutine,
which returns the event that ends it (`lifecycle` has the table). Not here: how a start goes (`start`), memory (`room`),
who may ask (`control`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from launchers import start as starts
from launchers.lifecycle import Event, delay
from launchers.room import CannotFit
from launchers.spec import EngineSpec
from launchers.wishes import DRAIN as DRAIN
from launchers.wishes import House as House
from launchers.wishes import Stop, Wishes

log = logging.getLogger("illm.launcher")

LEARN: Final = 10.0  # seconds between two looks at what a running engine holds


class ManagedEngine(Wishes):
    """`run` is its task; for all else see `Wishes`."""

    async def run(self) -> None:
        """Until `close`."""
        acts = {
            "stopped": self._be_stopped,
            "starting": self._be_starting,
            "ready": self._be_ready,
            "stopping": self._be_stopping,
            "backoff": self._be_backing_off,
            "fatal": self._be_fatal,
        }
        while (event := await acts[self.state]()) is not None:
            self._move(event)

    async def recover(self) -> None:
        """After a bug ended its task: end its process, and let a person look before it starts again."""
        if self._running is not None:
            try:
                await self._running.stop(self.spec.stop_timeout)
            except Exception:  # whatever it is, a second bug must not leave nobody to act on wishes
                log.exception("%s: its process may still run", self.spec.name)
        self._forget()
        error = f"Engine '{self.spec.name}' met a bug in the launcher, whose log has it."
        self._code = "engine_failed"
        self.condition.break_down(error)
        self.tickets.revoke(error)
        self._tell()

    # --- the states -------------------------------------------------------------------------------------------------

    async def _be_stopped(self) -> Event | None:
        while True:
            running = self._running
            if running is not None and running.has_ended:  # it died in its sleep
                self._forget()
                self._tell()
            elif running is not None and (self._closing or (self._stop is not None and not self._stop.asleep)):
                return "stop"
            if self._successor is not None:
                self._succeed(self._successor)
            if self._stop is not None:
                if not self._stop.asleep:
                    self.condition.failures = 0
                self._stop = None
                self._tell()
            if self._closing:
                return None
            if self._wanted():
                return "start"
            await self._wait_beside_sleeper()

    async def _be_starting(self) -> Event:
        self.condition.error = None
        work = asyncio.create_task(self._start(), name=f"start {self.spec.name}")
        try:
            while not work.done():
                if self._stop is not None or (self.spec.abandon and not self._wanted()):
                    return "stop"
                await self._wait(also=work)
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _start(self) -> Event:
        house, spec, sleeper = self._house, self.spec, self._running
        try:
            # Before others have to go for it: what can't start anyway shouldn't cost them their place.
            program = () if sleeper is not None else await starts.program(spec, house.means, self._say)
            async with house.room.admit(self, self._say):
                if sleeper is not None:
                    self.sleeps_on = ()
                    await starts.wake(spec, house.means, sleeper, self._base_url, self._say)
                else:
                    await starts.start(spec, program, house.means, self.output, self._say, self._spawned)
        except CannotFit as exc:
            self.condition.error = str(exc)
            self._keep = False  # nothing changes by trying again at once
            self.tickets.refuse("engine_memory", self.condition.error)
            return "stop"
        except starts.StartFailed as failed:
            self.condition.error, self._code = f"Engine '{spec.name}' {failed}", failed.code
            return "failed" if failed.again else "give_up"
        if self._record() and self._running is not None:
            self._running.release()
        return "ready"

    async def _be_ready(self) -> Event:
        running = self._running
        assert running is not None
        learn_at, drain_began, drain_until = 0.0, None, None
        ended = asyncio.create_task(running.ended())
        try:
            while not ended.done():
                now = time.monotonic()
                if self._stop is None:
                    self._grant()
                    self._mind_ttl()
                if self._stop is not None:
                    if drain_began is None:
                        drain_began = now
                        self.tickets.ask_back(self._stop.reason)
                    drain = self._stop.drain if self._stop.drain is not None else math.inf
                    if not self.tickets.leases or now >= drain_began + drain:
                        return "stop"
                    drain_until = drain_began + drain
                if now >= learn_at:
                    learn_at, claim = now + LEARN, self.claim
                    await self._house.room.learn(self)
                    if self.claim != claim:
                        self._show()
                await self._wait(timeout=self._next_look(drain_until, learn_at), also=ended)
            return self._crashed(ended.result().text)
        finally:
            self.condition.forgive()
            ended.cancel()

    async def _be_stopping(self) -> Event:
        stop, running = self._stop or Stop("nobody waits for it", 0, asleep=True), self._running
        self.tickets.revoke(self._was_stopped(stop.reason))
        if running is not None and not running.has_ended:
            if stop.asleep and not self._closing and await self._sleep():
                return "stopped"
            hurried = self._stop is not None and self._stop.at_once
            await running.stop(0 if hurried else self.spec.stop_timeout)
        self._forget()
        return "stopped"

    async def _be_backing_off(self) -> Event:
        self._forget()
        self.condition.failures += 1
        spec = self.spec
        if self.condition.failures > spec.restarts:
            self._code = "engine_failed"
            return "give_up"
        pause = delay(self.condition.failures)
        self._say(f"failed, try {self.condition.failures} of {spec.restarts} follows in {pause:g} s", None)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            if self._stop is not None or (spec.abandon and not self._wanted()):
                return "stop"
            await self._wait(timeout=left)
        return "retry"

    async def _be_fatal(self) -> Event:
        self._forget()
        self._keep = False
        self.tickets.refuse(self._code, self.condition.error or "")
        while not self._keep and self._stop is None:
            await self._wait()
        self.condition.failures = 0
        return "start" if self._stop is None else "stop"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _wanted(self) -> bool:
        return self._keep or self.tickets.waiting > 0

    def _grant(self) -> None:
        if self.tickets.waiting:
            self.tickets.grant(self.row())
            self._tell()

    def _mind_ttl(self) -> None:
        idle, ttl = self.condition.idle_for(self.tickets), self.spec.ttl
        if ttl is not None and not self.spec.pin and idle is not None and idle >= ttl:
            self._keep = False
            self._stop = Stop(f"idle for {ttl:g} s", 0, asleep=True)

    def _next_look(self, drain_until: float | None, learn_at: float) -> float:
        """Seconds until something is due."""
        due, ttl = [learn_at], None if self.spec.pin else self.spec.ttl
        if drain_until is not None:
            due.append(drain_until)
        elif ttl is not None and (idle := self.condition.idle_for(self.tickets)) is not None:
            due.append(time.monotonic() + ttl - idle)
        return max(min(due) - time.monotonic(), 0.01)

    def _crashed(self, how: str) -> Event:
        words = self.output.last_words()
        error = f"Engine '{self.spec.name}' ended ({how})." + (f" Its log ends with:\n{words}" if words else "")
        self.condition.error = error
        self.tickets.revoke(error)
        return "failed"

    async def _sleep(self) -> bool:
        """Whether it sleeps now, most of its memory given back."""
        if not self.sleeps_on and await starts.sleep(self.spec, self._house.means, self._base_url):
            self.sleeps_on = tuple(self.claim or ())
            self._house.room.vacate(self)
            self._record()
        return bool(self.sleeps_on)

    def _spawned(self, started: starts.Started) -> None:
        """There is a process, which isn't ready yet."""
        self._running, self._base_url = started.running, started.base_url
        self._record()
        self._tell()

    def _record(self) -> bool:
        """Note it down for the next launcher, and whether that could be done. One that sleeps is no longer what it was
        told to be: it is to be ended, and not adopted."""
        if self._running is None:
            return False
        record = self._running.record
        try:
            self._house.ledger.write(replace(record, fingerprint="") if self.sleeps_on else record)
        except OSError as exc:
            log.warning("%s: the next launcher won't find it again (%s)", self.spec.name, exc)
            return False
        return True

    def _forget(self) -> None:
        """The process is gone."""
        self._house.room.vacate(self)
        self._running, self._base_url, self.sleeps_on = None, "", ()
        with suppress(OSError):  # what is still in there is seen to have ended
            self._house.ledger.remove(self.spec.name)

    def _succeed(self, spec: EngineSpec) -> None:
        """From now on it is that."""
        self.spec, self._successor = spec, None
        self.fingerprint = starts.fingerprint(spec)
        self.output.hide(spec.secrets)
        self.condition.failures, self.condition.error = 0, None

    def _say(self, phase: str, progress: float | None) -> None:
        if self.condition.say(phase, progress):
            self._tell()

    def _move(self, event: Event) -> None:
        before = self.state
        self.condition.move(event)
        why = self._stop.reason if event == "stop" and self._stop is not None else None
        why = self.condition.error if event in ("failed", "give_up") else why
        log.info("%s: %s -> %s%s", self.spec.name, before, self.state, f" ({why})" if why else "")
        self._tell()

    async def _wait(self, timeout: float | None = None, also: asyncio.Future[Any] | None = None) -> None:  # noqa: ASYNC109
        """Until somebody has a wish, `also` is done, or `timeout` seconds are over."""
        poked = asyncio.ensure_future(self._poked.wait())
        awaited = {poked} if also is None else {poked, also}
        try:
            await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()
        self._poked.clear()

    async def _wait_beside_sleeper(self) -> None:
        """The same; or until a process that sleeps has ended."""
        ended = None if self._running is None else asyncio.create_task(self._running.ended())
        try:
            await self._wait(also=ended)
        finally:
            if ended is not None:
                ended.cancel()
