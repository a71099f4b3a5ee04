"""`python -m launchers --state FOLDER [--for-gateway] -- COMMAND…`: a launcher as a process; with `--check` in place of
a folder only a look whether there could be one: what can't be launched is printed, a line each.

COMMAND prints the document that says what to launch; it runs at the start and with every reload. Here are the socket,
the signals and the end: SIGTERM and SIGINT stop the engines (a second one at once), SIGHUP reloads. With
`--for-gateway` it ends by itself when no gateway has followed its events for `launcher.linger` seconds since one did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import uvicorn

from launchers import source
from launchers.control import Control
from launchers.ledger import Locked, lock
from launchers.process import become_subreaper
from launchers.refusals import problems
from launchers.spec import LauncherSpec, SpecError
from launchers.supervisor import Supervisor

log = logging.getLogger("illm.launcher")

USAGE: Final = 2  # exit status for what the user can mend
LONGEST_PATH: Final = 104  # bytes of a unix socket's path on the strictest system
LOOK: Final = 1.0  # seconds between two looks for a gateway
ARRIVAL: Final = 60.0  # seconds that it waits at least for the first one
RETURN: Final = 1.0  # seconds that it waits at least for one that lost its connection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal or a request ends it. Blocks; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    if options.check:
        return asyncio.run(_check(options.command))
    folder: Path = options.state.absolute()
    try:
        held = lock(folder)
    except Locked as exc:
        return _wrong(str(exc))
    except OSError as exc:
        return _wrong(f"The state folder {folder} can't be used ({exc.strerror}). Set launcher.state to another.")
    try:
        with held:
            asyncio.run(Program(folder, options.command, for_gateway=options.for_gateway).run())
    except SpecError as exc:
        return _wrong(str(exc))
    return 0


async def _check(command: Sequence[str]) -> int:
    """Print what can't be launched, a line each."""
    try:
        found = problems((await source.read(command)).engines)
    except SpecError as exc:
        return _wrong(str(exc))
    for line in found:
        print(line)  # noqa: T201
    return 0


def _wrong(message: str) -> int:
    """Say it, and the exit status for it."""
    print(f"illm launch: {message}", file=sys.stderr)  # noqa: T201
    return USAGE


class Program:
    """The process: a supervisor, its API on a socket, and what ends them."""

    def __init__(self, folder: Path, command: Sequence[str], *, for_gateway: bool) -> None:
        self._folder = folder
        self._command = command
        self._for_gateway = for_gateway
        self._asked = asyncio.Event()
        self._leave = False
        self._reloads: set[asyncio.Task[None]] = set()  # the loop alone wouldn't keep them

    async def run(self) -> None:
        """Until it is asked to end. Raises `SpecError` where it can't begin."""
        become_subreaper()
        document = await source.read(self._command)
        launcher = document.launcher
        supervisor = Supervisor(self._folder, self._command, document)
        control = Control(supervisor, self._folder.name, _version(), self._end, for_gateway=self._for_gateway)
        sock, shown = _listen(self._folder, launcher)  # not before it is sure that there is something to say
        try:
            await self._serve(supervisor, control, sock, shown)
        finally:
            sock.close()
            if sock.family == socket.AF_UNIX:
                (self._folder / "launcher.sock").unlink(missing_ok=True)

    async def _serve(self, supervisor: Supervisor, control: Control, sock: socket.socket, shown: str) -> None:
        launcher = supervisor.document.launcher
        server = _Server(uvicorn.Config(
            control.app(launcher.api_key), lifespan="off", ws="none", log_config=None, access_log=False,
            timeout_graceful_shutdown=1,
        ))  # fmt: skip
        self._signals(supervisor)
        await supervisor.begin()
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        names = ", ".join(one.name for one in supervisor.document.engines) or "none"
        log.info("launcher listens on %s; engines: %s", shown, names)
        watching = asyncio.create_task(self._watch_gateways(supervisor)) if self._for_gateway else None
        try:
            await self._asked.wait()
            log.info("ending%s", ", leaving the engines to the next launcher" if self._leave else " the engines")
            closing = asyncio.create_task(supervisor.close(leave=self._leave))
            await self._hurry(supervisor, closing)
        finally:
            if watching is not None:
                watching.cancel()
            server.should_exit = True
            await serving

    async def _hurry(self, supervisor: Supervisor, closing: asyncio.Task[None]) -> None:
        """Until it is closed; a second signal cuts the requests under way."""
        self._asked.clear()
        again = asyncio.create_task(self._asked.wait())
        await asyncio.wait((closing, again), return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            supervisor.hurry()
        await closing
        again.cancel()

    def _end(self, leave: bool) -> None:
        self._leave = self._leave or leave
        self._asked.set()

    def _signals(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, False)
        loop.add_signal_handler(signal.SIGHUP, self._reload, supervisor)

    def _reload(self, supervisor: Supervisor) -> None:
        task = asyncio.get_running_loop().create_task(_reload(supervisor), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _watch_gateways(self, supervisor: Supervisor) -> None:
        seen, least, came = time.monotonic(), ARRIVAL, 0
        while True:
            linger = max(supervisor.document.launcher.linger, least)
            await asyncio.sleep(min(LOOK, linger / 4))
            now = time.monotonic()
            board = supervisor.board
            if board.followers or board.came > came:  # one may have come and gone between two looks
                seen, least, came = now, RETURN, board.came
            elif now - seen >= linger:
                log.info("no gateway for %g s", linger)
                self._asked.set()
                return


async def _reload(supervisor: Supervisor) -> None:
    try:
        await supervisor.reload()
    except SpecError as exc:
        log.error("reload: %s\nNothing was changed.", exc)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(folder: Path, launcher: LauncherSpec) -> tuple[socket.socket, str]:
    """The control API's socket, and where it is. Raises `SpecError`."""
    if launcher.listen is not None:
        url = urlsplit(launcher.listen)
        host, port = url.hostname or "127.0.0.1", url.port or 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family)
        except OSError as exc:
            why = (exc.strerror or str(exc)).partition(" (while")[0]
            raise SpecError(f"Can't listen on {launcher.listen} ({why}). Change launcher.listen.") from None
        return sock, f"http://{host}:{sock.getsockname()[1]}"
    path = folder / "launcher.sock"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise SpecError(
            f"The path of the launcher's socket is too long ({path}). Set launcher.state to a shorter folder, or "
            "launcher.listen."
        )
    path.unlink(missing_ok=True)  # the lock on the folder says that nobody uses it
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    sock.listen(128)
    return sock, str(path)


def _version() -> str:
    try:
        return version("illm")
    except PackageNotFoundError:
        return "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launchers", description="Spawns and watches engines.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--state", type=Path, metavar="FOLDER", help="where its socket and logs are")
    mode.add_argument("--check", action="store_true", help="only print what can't be launched")
    parser.add_argument("--for-gateway", action="store_true", help="end when no gateway uses it any more")
    parser.add_argument("command", nargs="+", help="prints what to launch (after --)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
