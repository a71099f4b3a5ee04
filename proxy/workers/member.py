"""One worker as its parent sees it: its process, the channel to it, and what it has counted so far."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from proxy.metrics import Counted, Key, Series
from proxy.transport import Origin
from proxy.workers.messages import Channel, Count, Counting


class Member:
    """`begun`: it was told what to serve; `serving`: it does; `draining`: how many requests it lets finish, once it has
    said so."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.begun = False
        self.serving = False
        self.draining: int | None = None
        self.series: dict[Key, Series] = {}
        self.errors: dict[str, int] = {}
        self.connections: dict[Origin, int] = {}
        self.asked: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def start(cls, number: int, workers: int, listener: int, table: int, bells: Sequence[int]) -> Member:
        """A new process, in a session of its own: a Ctrl-C is the parent's to hear. The rest are open files."""
        here, there = socket.socketpair()
        with there:
            files = (there.fileno(), listener, table, *bells)
            words = [str(word) for word in (number, workers, *files)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "proxy.workers.worker", *words,
                pass_fds=files, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return cls(number, process, await Channel.over(here))

    def ask(self, number: int) -> asyncio.Future[None]:
        """Have it say what it has counted; done when it has, cancelled when it ends."""
        self.asked[number] = asyncio.get_running_loop().create_future()
        self.channel.send(Count(number))
        return self.asked[number]

    def count(self, told: Counting) -> None:
        """It told what it has counted."""
        self.series.update(told.counted.series)
        self.errors = dict(told.counted.errors)
        self.connections = dict(told.connections)
        if told.number is not None and (asked := self.asked.pop(told.number, None)) is not None and not asked.done():
            asked.set_result(None)

    def counted(self) -> Counted:
        """As far as is known."""
        return Counted(self.series, self.errors)

    def ended(self) -> Counted:
        """What it has counted in its life; nothing of it is under way any more."""
        for asked in self.asked.values():
            asked.cancel()
        for series in self.series.values():
            series.in_flight = 0
        return self.counted()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def why(self) -> str:
        """How its process ended."""
        code = self.process.returncode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"killed by {signal.Signals(-code).name} (pid {self.process.pid})"
        return f"exit status {code} (pid {self.process.pid})"
