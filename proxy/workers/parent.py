"""The parent of the workers: it has the port, knows the backends (`control`), and serves nothing itself.

It starts the workers, tells them what it finds out and what changes in the settings, adds up what they count, and puts
another in the place of one that dies. Whatever only one process may do (local engines, the demo engine, bringing a
launcher back) is done here. Not here: the limits, which the workers keep among themselves (`places`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.app import new_via
from proxy.control import Control
from proxy.drain import TICK, waits_for
from proxy.launched import Launch, Revive
from proxy.launcher_client import Address
from proxy.registry import Registry
from proxy.reload import Reload
from proxy.server import Reloading, ServeError, greeting, listen, say, url_of
from proxy.settings import Settings
from proxy.workers.member import Member
from proxy.workers.messages import Adopt, Ask, Begin, Counting, Drain, Draining, Findings, Know, Serving, Total
from proxy.workers.sharing import Sharing
from proxy.workers.signals import Heard, listening
from proxy.workers.table import new_bells, new_table
from proxy.workers.totals import Totals

log = logging.getLogger("illm")

SHORT: Final = 10.0  # seconds: a worker that lives no longer is not replaced at once
FIRST_WAIT: Final = 0.2  # seconds before that; twice as long each time
LONGEST_WAIT: Final = 10.0
TRIES: Final = 3  # workers that may die in a row without having served, where none serves
COMING_UP: Final = 10.0  # seconds for which the start-up text waits for all workers
SAYING: Final = 1.0  # seconds in which workers say what they wait for
GRACE: Final = 10.0  # seconds after the drain after which a worker is killed


def serve(
    settings: Settings,
    *,
    launchers: Sequence[Address] = (),
    reload: Callable[[], Settings] | None = None,
    revive: Revive | None = None,
    launch: Launch | None = None,
) -> None:
    """As `server.serve`, with `server.workers` processes."""
    sock, notes = listen(settings)
    with sock, listening() as heard, asyncio.Runner() as runner:
        try:
            runner.run(_Parent(settings, sock, tuple(launchers), revive, launch).run(notes, reload, heard))
        except KeyboardInterrupt:
            return
    try:
        for number in heard.got[:1]:
            signal.raise_signal(number)  # whoever started us sees what ended us, as with one process
    except KeyboardInterrupt:
        return


class _Parent:
    """The process's own."""

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        launchers: tuple[Address, ...],
        revive: Revive | None,
        launch: Launch | None,
    ) -> None:
        self._settings = settings  # what they began with: some of it holds until the next start
        self._count = settings.server.workers
        self._sock = sock
        self._table = new_table(self._count + 1)
        self._bells = new_bells(self._count)
        self._control = Control(
            settings,
            own_port=sock.getsockname()[1],
            launchers=launchers,
            revive=revive,
            launch=launch,
            sharing=Sharing(self._table, self._bells),
        )
        control = self._control
        self._reload = Reload(control.registry, control.health, control.launched, (), control.begin_launcher)
        self._via = new_via()
        self._started = time.time()
        self._members: dict[int, Member] = {}
        self._totals = Totals(self._control.registry, self._members.values(), self._started)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: Findings | None = None  # None: nothing is known yet
        self._telling = False
        self._dead = 0  # workers in a row that never served
        self._stopping = asyncio.Event()
        self._hurried = False  # a second Ctrl-C came
        self._news = asyncio.Event()  # a worker serves, or there will be none
        self._hopeless = ""

    @property
    def registry(self) -> Registry:
        return self._control.registry

    async def run(self, notes: list[str], read: Callable[[], Settings] | None, heard: Heard) -> None:
        """Until a signal ends it and all workers have ended. Raises `ServeError` where none comes up."""
        loop = asyncio.get_running_loop()
        heard.then = lambda number: loop.call_soon_threadsafe(self._end, number)
        if heard.got:
            return
        if read is not None:
            loop.add_signal_handler(signal.SIGHUP, Reloading(self, read))
        keepers = [loop.create_task(self._keep(number), name=f"worker {number}") for number in range(self._count)]
        try:
            await self._control.start()
            self.registry.changed = self._changed
            self._told = self._findings()
            for member in self._members.values():
                self._begin(member)
            await self._come_up()
            if not self._stopping.is_set():
                say("\n".join([*notes, *greeting(self, self.registry.settings, url_of(self._sock))]))
            await self._stopping.wait()
        finally:
            await self._finish(keepers, interrupted=signal.SIGINT in heard.got)
            heard.then = lambda _: None
        if self._hopeless:
            raise ServeError(self._hopeless)

    async def reload(self, settings: Settings) -> None:
        """Have all take changed settings over, until they hold here."""
        await self._reload(settings)
        self._told = self._findings()
        self._say(Adopt(settings, self._told, self._launchers()))

    # -- the beginning and the end -----------------------------------------------------------------------------

    async def _come_up(self) -> None:
        """Until all workers serve, or the first ones do and the others have had their time."""
        deadline = asyncio.get_running_loop().time() + COMING_UP
        while not self._stopping.is_set():
            serving = sum(member.serving for member in self._members.values())
            left = deadline - asyncio.get_running_loop().time()
            if serving == self._count or (serving and left <= 0):
                return
            self._news.clear()
            try:
                async with asyncio.timeout(left if left > 0 else None):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _end(self, number: int) -> None:
        """A signal came: let answers finish; at the second Ctrl-C, don't."""
        again = self._stopping.is_set() and number == signal.SIGINT
        self._stop()
        if again:
            self._hurried = True
            self._say(Drain(now=True))

    def _stop(self) -> None:
        self._stopping.set()
        self._news.set()

    async def _finish(self, keepers: list[asyncio.Task[None]], *, interrupted: bool) -> None:
        self._stopping.set()
        self._sock.close()
        for member in self._members.values():
            self._dismiss(member)
        await self._tell_what_is_under_way(interrupted)
        limit = self.registry.settings.server.drain_timeout + GRACE
        _, late = await asyncio.wait(keepers, timeout=limit)
        if late:
            log.error("%d workers did not end in time and are killed", len(self._members))
            for member in self._members.values():
                member.signal(signal.SIGKILL)
            await asyncio.wait(late)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*keepers, *self._tasks, return_exceptions=True)
        await self._control.close()

    async def _tell_what_is_under_way(self, interrupted: bool) -> None:
        """Once all have said what they wait for; who doesn't in time isn't counted."""
        serving = [member for member in self._members.values() if member.serving]
        deadline = asyncio.get_running_loop().time() + SAYING
        while any(m.draining is None and m.number in self._members for m in serving):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(TICK)
        requests = sum(member.draining or 0 for member in serving)
        limit = self._settings.server.drain_timeout
        if requests and limit and not self._hurried:
            say(waits_for(requests, math.ceil(limit), again=interrupted))

    @staticmethod
    def _dismiss(member: Member) -> None:
        if member.begun:
            member.channel.send(Drain())
        else:
            member.signal(signal.SIGTERM)

    # -- one worker --------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Always have a worker of that number."""
        loop = asyncio.get_running_loop()
        wait = 0.0
        while not self._stopping.is_set():
            born = loop.time()
            served, why = await self._live(number)
            if self._stopping.is_set():
                return
            log.error("worker %d ended: %s. Another takes its place.", number, why)
            self._dead = 0 if served else self._dead + 1
            if self._dead >= TRIES and not any(member.serving for member in self._members.values()):
                self._hopeless = f"No worker comes up; the last one ended: {why}. Its own words are above."
                self._stop()
                return
            wait = min(max(2 * wait, FIRST_WAIT), LONGEST_WAIT) if loop.time() - born < SHORT else 0.0
            await self._rest(wait)

    async def _live(self, number: int) -> tuple[bool, str]:
        """One worker's life: whether it served, and how it ended."""
        files = [file for pair in self._bells.pairs for file in pair]
        try:
            member = await Member.start(number, self._count, self._sock.fileno(), self._table.fd, files)
        except OSError as exc:
            return False, f"its process can't be started ({exc.strerror})"
        self._members[number] = member
        if self._stopping.is_set():
            self._dismiss(member)
        elif self._told is not None:
            self._begin(member)
        await self._attend(member)
        await self._bury(member)
        return member.serving, member.why()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _begin(self, member: Member) -> None:
        assert self._told is not None
        member.begun = True
        now = self.registry.settings
        member.channel.send(Begin(self._settings, now, self._told, self._launchers(), self._via, self._started))

    async def _attend(self, member: Member) -> None:
        """Hear what it says, until it is gone."""
        while (message := await member.channel.receive()) is not None:
            match message:
                case Serving():
                    member.serving = True
                    self._news.set()
                case Counting():
                    member.count(message)
                case Draining(requests):
                    member.draining = requests
                case Ask(number):
                    self._answer(member, number)

    def _answer(self, asker: Member, number: int) -> None:
        async def answer() -> None:
            asker.channel.send(Total(number, await self._totals.text()))

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(self, member: Member) -> None:
        """Nothing of it is left, and what it has counted stays."""
        try:
            async with asyncio.timeout(GRACE):
                await member.process.wait()
        except TimeoutError:  # it has closed its channel and goes on
            member.signal(signal.SIGKILL)
            await member.process.wait()
        await member.channel.close()
        del self._members[member.number]
        self._totals.keep(member)
        self._table.strike_out(member.number)
        self._bells.ring_all()  # what it held is free

    # -- what workers are told ---------------------------------------------------------------------------------

    def _findings(self) -> Findings:
        """Of launched engines workers hear from their launchers."""
        return tuple(b.finding() for b in self.registry.backends.values() if b.engine is None)

    def _launchers(self) -> tuple[Address, ...]:
        return tuple(one.address for one in self._control.launched)

    def _changed(self) -> None:
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        findings = self._findings()
        if findings != self._told:
            self._told = findings
            self._say(Know(findings))

    def _say(self, message: object) -> None:
        for member in self._members.values():
            if member.begun:
                member.channel.send(message)
