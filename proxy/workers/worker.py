"""A worker: one process that serves, told what it serves by its parent, which starts it as
`python -m proxy.workers.worker NUMBER WORKERS CHANNEL LISTENER TABLE BELL…` (numbers of open files).

It ends when the parent tells it to, is gone, or on SIGTERM; each time answers under way may finish. Not here: finding
out what backends there are and how they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any, Final, cast

import uvicorn

from proxy.app import Team, create_app
from proxy.drain import DrainingServer
from proxy.errors import error
from proxy.metrics import Counted, Key
from proxy.server import configured, settle
from proxy.workers import accept
from proxy.workers.following import Following
from proxy.workers.messages import (
    Adopt,
    Ask,
    Begin,
    Channel,
    Count,
    Counting,
    Drain,
    Draining,
    Know,
    Serving,
    Total,
    receive,
)
from proxy.workers.sharing import Sharing
from proxy.workers.table import Bells, Table

log = logging.getLogger("illm")

TELL: Final = 0.2  # seconds between two looks at the counters: so much of them dies with a worker that is killed
TOTAL: Final = 5.0  # seconds that a scrape waits for the other workers' counters


class _Server(DrainingServer):
    """uvicorn, with a listener that shares its socket fairly."""

    def __init__(self, worker: Worker, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        table = self._worker.table
        state = self.server_state
        state.connections = accept.Connections(table.connections, table.me)

        def connection() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=state, app_state=self.lifespan.state
            )

        listeners = [accept.Listener(sock, connection, table.connections, table.me) for sock in sockets or ()]
        self.servers = cast(list[asyncio.Server], listeners)
        settle()
        self._worker.serving()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not raised again at the end, as uvicorn's own does: the last counters are still to be told."""
        self.should_exit = True


class Worker:
    """The process's own; `run` blocks for as long as it serves."""

    def __init__(self, begin: Begin, channel: socket.socket, listener: socket.socket, table: Table, bells: Bells):
        self.table = table
        self._bells = bells
        self._sharing = Sharing(table, bells)
        team = Team(self._sharing, self._totals, table.log, begin.via, begin.started)
        self._gateway = create_app(begin.settings, launchers=begin.launchers, team=team)
        self._following = Following(self._gateway)
        self._following.adopt(begin.adopted, begin.findings, begin.launchers)
        self._config = configured(self._gateway, begin.settings)
        self._server = _Server(self, self._config)
        self._sock = channel
        self._listener = listener
        self._channel: Channel = None  # type: ignore[assignment]  # `_run` opens it
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._told: dict[Key, tuple[int, int]] = {}  # what of each series was told last
        self._told_errors: dict[str, int] = {}

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self._run())

    def serving(self) -> None:
        """It takes connections now."""
        self._channel.send(Serving())

    async def _run(self) -> None:
        self._channel = await Channel.over(self._sock)
        bell = self._bells.pairs[self.table.me][0]
        asyncio.get_running_loop().add_reader(bell, self._rung)
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tell())]
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._say_counters()
            await self._channel.close()

    def _rung(self) -> None:
        self._bells.heard(self.table.me)
        self._sharing.serve()

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            try:
                self._take(message)
            except Exception:  # a bug in one message must not make it deaf to the next
                log.exception("a message of the parent process")
        self._server.should_exit = True  # the parent is gone

    def _take(self, message: Any) -> None:
        match message:
            case Know(findings):
                self._following.know(findings)
            case Adopt(settings, findings, launchers):
                self._following.adopt(settings, findings, launchers)
            case Count(number):
                self._say_counters(number)
            case Total(number, text):
                if (asked := self._asked.get(number)) is not None and not asked.done():
                    asked.set_result(text)
            case Drain(now):
                if now:
                    self._server.hurry()
                else:
                    self._channel.send(Draining(self._server.under_way))
                self._server.should_exit = True

    # -- counters ----------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL)
            self._say_counters()
            self._sharing.serve()  # should whoever was to ring have died first

    def _say_counters(self, number: int | None = None) -> None:
        """What has changed since the last time; nothing where nothing has and nobody asked."""
        metrics = self._gateway.metrics.counted()
        stamps = {key: (sum(one.statuses.values()), one.in_flight) for key, one in metrics.series.items()}
        changed = {key: metrics.series[key] for key, stamp in stamps.items() if self._told.get(key) != stamp}
        errors = dict(metrics.errors)
        if changed or errors != self._told_errors or number is not None:
            transport = self._gateway.transport
            origins = {backend.origin for backend in self._gateway.registry.backends.values()}
            connections = {origin: transport.open_to(origin) for origin in origins}
            self._channel.send(Counting(Counted(changed, errors), connections, number))
        self._told, self._told_errors = stamps, errors

    async def _totals(self) -> bytes:
        """The metrics of all workers. Raises `ApiError` where they can't be had in time: too little would look like a
        restart."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Ask(number))
        try:
            async with asyncio.timeout(TOTAL):
                return await self._asked[number]
        except TimeoutError:
            raise error(
                "internal_error", "The counters of all workers can't be added up at the moment. Ask again shortly."
            ) from None
        finally:
            del self._asked[number]


class _Own(logging.Filter):
    """Leaves out what the parent says as well: how launchers are."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.module != "launched" or record.levelno > logging.WARNING


def main(words: list[str]) -> int:
    """Blocks until the worker ends; its exit code."""
    number, workers, channel, listener, table, *bells = map(int, words)
    told = f"%(asctime)s %(levelname)s worker {number}: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=told, stream=sys.stderr)
    log.addFilter(_Own())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's
    sock = socket.socket(fileno=channel)
    begin = receive(sock)
    if begin is None:  # the parent is gone already
        return 0
    pairs = list(zip(bells[::2], bells[1::2], strict=True))
    worker = Worker(begin, sock, socket.socket(fileno=listener), Table(table, workers + 1, number), Bells(pairs))
    with contextlib.suppress(KeyboardInterrupt):
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
