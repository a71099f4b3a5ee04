"""How the launcher comes by a running engine: it spawns one, or finds one again that another launcher left.

Starting is quick and blocks the event loop for no longer than a fork. Not here: what a running engine is (`running`),
what to run (`engines/`), whether it is ready (`readiness`).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, Literal
from urllib.parse import quote

from launchers import guard, remains
from launchers.engines.base import Command
from launchers.guard import become_subreaper as become_subreaper
from launchers.logs import EngineLog
from launchers.remains import children as children
from launchers.remains import reap_strangers as reap_strangers
from launchers.running import Exit as Exit
from launchers.running import Record as Record
from launchers.running import Running as Running
from launchers.running import explain, forget_status, last_status, open_pidfd, read_status, resisting, start_time

REPORT_TIMEOUT: Final = 60.0  # seconds until a guard has said how the start went; a program may lie on a slow disk
_FREE_FD: Final = 16  # above the numbers that a guard expects, so that none is overwritten before it is copied

_WHY_NOT: Final = {
    errno.ENOENT: "was not found; install it, or put its full path into `command`",
    errno.EACCES: "may not be run; see that it is a file with execute permission (`chmod +x`)",
    errno.ENOEXEC: "is no program that this machine can run",
    errno.E2BIG: "got a command line and environment that are too long",
}


class NotStarted(Exception):
    """The program can't be run; the text is for people, and goes on from the engine's name."""


async def spawn(
    command: Command,
    *,
    name: str,
    log: EngineLog,
    run_dir: Path,
    orphans: Literal["kill", "adopt"],
    grace: float,
    host: str,
    port: int,
    model: str,
    fingerprint: str,
    cwd: Path | None = None,
) -> Running:
    """Start an engine; returns as soon as its program runs. Raises `NotStarted`. When cancelled it is ended again.

    Its environment is this process's, less all that begins with ILLM_ (there are keys in it), and the command's. Its
    output goes to `log`. `run_dir` is made if need be. `grace`: seconds between SIGTERM and SIGKILL when it ends for
    another reason than `Running.stop`, and at most then. Until `Running.release` it never outlives this process.
    """
    token = secrets.token_hex(8)
    record = Record(
        name=name,
        token=token,
        epoch=remains.epoch(),
        guard_pid=0,
        guard_start="",
        engine_pid=0,
        engine_start="",
        orphans=orphans,
        host=host,
        port=port,
        model=model,
        fingerprint=fingerprint,
        grace=grace,
        cleanup=command.cleanup,
        started=time.time(),
        log=str(log.path),
        status=_status_file(run_dir, name, token),
    )
    starting = asyncio.create_task(_start(record, command, log, cwd), name=f"spawn {name}")
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_end_at_once)  # also if this is cancelled again
        with suppress(NotStarted, OSError):
            await (await asyncio.shield(starting)).ended()
        raise


def adopt(record: Record) -> Running | None:
    """Take over a run that another launcher left behind. None unless it was meant to be adopted, its guard and its
    engine are alive and the same, and it isn't being stopped; then `clear` is called for. Must run in an event loop."""
    alive = record.epoch == remains.epoch() and start_time(record.engine_pid) == record.engine_start
    if record.orphans != "adopt" or not alive or read_status(record):
        return None
    return _attach(record)


async def clear(record: Record) -> Exit:
    """End whatever is left of a recorded run that isn't adopted: how it ended. Blocks until nothing of it is left."""
    running = _attach(record)
    if running is not None:
        return await running.stop(record.grace)
    told = last_status(record)
    forget_status(record)
    if told is not None:
        return explain(told)
    left: list[int] = []
    if record.epoch == remains.epoch():
        left = await remains.end(record.token, record.engine_pid, record.engine_start, certain=False)
    await remains.clean_up(record.cleanup)
    return Exit(None, f"ended while no launcher watched it{resisting(left)}")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a child gets: this process's environment without what is meant for illm alone, and `extra` over it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ILLM_")} | dict(extra)


# --- inside ----------------------------------------------------------------------------------------------------------


async def _start(record: Record, command: Command, log: EngineLog, cwd: Path | None) -> Running:
    """The run of which `record` tells, as far as it is known before. Not to be cancelled."""
    env = environment(command.env) | {guard.MARK: record.token}
    plan = {
        "argv": command.argv,
        "env": env,
        "cwd": str(cwd) if cwd else None,
        "cleanup": command.cleanup,
        "grace": record.grace,
        "status": record.status,
    }
    try:
        output = log.open()
        try:
            pid, lifeline, report = _start_guard(record.name, plan, output)
        finally:
            os.close(output)
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        raise NotStarted(f"could not be started: {exc.strerror}{where}") from None
    row = guard.process(pid)  # also where it has ended: it is not reaped yet
    guard_start = row.start if row is not None else start_time(pid) or ""
    try:
        said = await _report(report)
        if "engine" not in said:
            raise NotStarted(_why(said, command, env, cwd))
    except BaseException:
        os.close(lifeline)
        await _bury(pid)
        raise
    engine = said["engine"]
    started = said["start"] or start_time(engine) or ""
    record = replace(record, guard_pid=pid, guard_start=guard_start, engine_pid=engine, engine_start=started)
    return Running(record, open_pidfd(pid), lifeline, child=True)


def _status_file(run_dir: Path, name: str, token: str) -> str:
    return str(run_dir.absolute() / f"{quote(name, safe='')}.{token}.status")


def _end_at_once(starting: asyncio.Task[Running]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().ask_to_stop(0)


def _attach(record: Record) -> Running | None:
    """The run, if its guard is alive and the same."""
    pidfd = open_pidfd(record.guard_pid)  # first: after it, the pid can't come to mean another unseen
    if record.epoch == remains.epoch() and start_time(record.guard_pid) == record.guard_start:
        return Running(record, pidfd, None, child=False)
    if pidfd is not None:
        os.close(pidfd)
    return None


def _start_guard(name: str, plan: Mapping[str, Any], output: int) -> tuple[int, int, int]:
    """Its pid, the lifeline to hold and the pipe on which it will report; the caller closes both. Raises OSError.

    The plan goes through a file without a name, not argv or the environment: there are keys in it, and an engine's
    LD_LIBRARY_PATH or PYTHONHOME must not reach the guard's Python.
    """
    folder = Path(plan["status"]).parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as theirs, ExitStack() as ours:
        end, lifeline = _pipe(theirs, ours)
        report, answer = _pipe(ours, theirs)
        file = theirs.enter_context(TemporaryFile(dir=folder))
        file.write(json.dumps(plan).encode("ascii"))
        file.seek(0)
        held = [fcntl(fd, F_DUPFD_CLOEXEC, _FREE_FD) for fd in (file.fileno(), output, output, end, answer)]
        for fd in held:
            theirs.callback(os.close, fd)
        pid = os.posix_spawn(
            sys.executable,
            (sys.executable, "-I", "-S", guard.__file__, name),
            environment({}),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(held)],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP),
        )
        ours.pop_all()
    return pid, lifeline, report


def _pipe(reader_of: ExitStack, writer_of: ExitStack) -> tuple[int, int]:
    """A pipe, each end of which is closed with one of these."""
    reader, writer = os.pipe()
    reader_of.callback(os.close, reader)
    writer_of.callback(os.close, writer)
    return reader, writer


async def _report(pipe: int) -> dict[str, Any]:
    """What the guard says of the start; closes `pipe`."""
    loop = asyncio.get_running_loop()
    os.set_blocking(pipe, False)
    text = b""
    done = loop.create_future()

    def read() -> None:
        nonlocal text
        part = os.read(pipe, 4096)
        text += part
        if not part and not done.done():
            done.set_result(None)

    loop.add_reader(pipe, read)
    try:
        async with asyncio.timeout(REPORT_TIMEOUT):
            await done
        said = json.loads(text)
        assert isinstance(said, dict)
        return said
    except TimeoutError:
        raise NotStarted(
            f"its program was not started within {REPORT_TIMEOUT:g} s; is its disk slow or gone?"
        ) from None
    except ValueError:
        raise NotStarted("its guard process ended at once; the end of its log may tell why") from None
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)


async def _bury(pid: int) -> None:
    """Kill a guard that has no engine, and reap it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            if remains.reap(pid) is not None:
                return
            await asyncio.sleep(0.005)


def _why(said: Mapping[str, Any], command: Command, env: Mapping[str, str], cwd: Path | None) -> str:
    """Why a start failed, from the guard's report."""
    number = said.get("errno", 0)
    if said.get("cwd") and cwd is not None:
        return f"its folder {str(cwd)!r} can't be entered: {os.strerror(number)}"
    program = command.argv[0]
    found = shutil.which(program, path=env.get("PATH"))
    if number == errno.ENOENT and found is not None:
        return f"its program {found!r} is a script whose interpreter (its first line) was not found; install it again"
    return f"its program {program!r} {_WHY_NOT.get(number, f'can not be run: {os.strerror(number)}')}"
