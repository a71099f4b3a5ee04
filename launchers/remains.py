"""What a run leaves behind when its guard can't clear up any more, because it was killed itself: found and ended.

Works on the process table alone, so that it also serves a launcher that never saw the run. Not here: the normal end,
which is the guard's (`guard`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launchers.guard import CLEANUP, LOOK, MARK, STUCK, Process, descendants, processes


def epoch() -> str:
    """Stands for this boot and this table of processes (a container has its own): a pid of another means nothing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


async def end(token: str, session: int, start: str, *, certain: bool) -> list[int]:
    """SIGKILL every process of a run, and reap those that are this process's. Those that resist for `STUCK` seconds.

    `token`: what the run's processes have in their environment; `session` and `start`: its engine's pid and start time.
    `certain`: the engine ended just now, so that number can't be another's yet.
    """
    ours: set[int] = set()
    deadline = time.monotonic() + STUCK
    clean = 0
    left: list[Process] = []
    while clean < 2 and time.monotonic() < deadline:  # twice: one may have been born behind the back of a look
        found = await asyncio.to_thread(_of_run, token, session, start, certain)
        ours |= {row.pid for row in found if row.parent == os.getpid()}
        left = [row for row in found if not row.zombie]
        clean = 0 if left else clean + 1
        for row in left:
            with suppress(OSError):
                os.kill(row.pid, signal.SIGKILL)
        await asyncio.sleep(LOOK)
        ours -= {pid for pid in ours if _reap(pid)}
    return [row.pid for row in left]


async def clean_up(command: Sequence[str]) -> None:
    """Run a cleanup command; at most `CLEANUP` seconds, and whatever comes of it."""
    if not command:
        return
    null = asyncio.subprocess.DEVNULL
    with suppress(OSError):
        process = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=null)
        try:
            async with asyncio.timeout(CLEANUP):
                await process.wait()
        except BaseException as exc:
            with suppress(ProcessLookupError):
                process.kill()
            if not isinstance(exc, TimeoutError):
                raise
            await process.wait()


def reap(pid: int) -> int | None:
    """Take a child off the process table: its exit status (negative: a signal), None where it hasn't ended. Raises
    ChildProcessError where it is none, or was taken."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def children() -> set[int]:
    """This process's own, and those that came to it as a sub-reaper."""
    return {row.pid for row in processes().values() if row.parent == os.getpid()}


def reap_strangers(known: set[int]) -> list[int]:
    """Take the zombies that came to this process as a sub-reaper, and kill the living ones that a run had started.
    Their pids. Call it when a guard has been killed, and now and then.

    `known`: children that somebody here waits for, the guards above all. Children in this process's own session are its
    own too, and left alone.
    """
    gone: list[int] = []
    for row in processes().values():
        if row.parent != os.getpid() or row.pid in known or row.session == os.getsid(0):
            continue
        if not row.zombie:
            if not _marked(row.pid, f"{MARK}="):
                continue
            with suppress(OSError):
                os.kill(row.pid, signal.SIGKILL)
        if _reap(row.pid) or not row.zombie:
            gone.append(row.pid)
    return gone


def _of_run(token: str, session: int, start: str, certain: bool) -> list[Process]:
    """The processes of one run and all below them, but never this one."""
    table = processes()
    leader = table.get(session)
    certain = certain or (leader is not None and leader.start == start)

    def belongs(row: Process) -> bool:
        if row.session == session and (certain or (leader is None and int(row.start) >= int(start or 0))):
            return True
        return not row.zombie and _marked(row.pid, f"{MARK}={token}")

    me = os.getpid()
    roots = [row for row in table.values() if row.pid != me and belongs(row)]
    found = {row.pid: row for row in (*roots, *descendants([row.pid for row in roots], table))}
    found.pop(me, None)
    return list(found.values())


def _marked(pid: int, mark: str) -> bool:
    """Whether the environment that it was started with holds that. A program may have written over it, so nothing
    follows from False."""
    try:
        return any(word.startswith(mark.encode()) for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _reap(pid: int) -> bool:
    """Whether it had ended, and is now off the table."""
    with suppress(ChildProcessError):
        return reap(pid) is not None
    return True
