"""A running engine as the launcher sees it: watched through its guard, stopped for certain, described when it ended.

Between the launcher and each engine stands a guard (`guard`), which does the work; here it is told and watched. Nothing
blocks the event loop. Not here: how one comes by a running engine (`process`), and whether it is ready.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from launchers import guard, remains

POLL: Final = 0.1  # seconds between two looks, where the system can't tell of a process's end
MARGIN: Final = guard.STUCK + guard.CLEANUP + 5.0  # seconds after its grace in which a guard must be done
RELEASE: Final = b"k"  # what a guard is told before its lifeline may end


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a run, enough for another launcher to find it again. No secrets in it.

    A pid alone may be another's by now, hence the start times (text, in the system's own unit) and `epoch`
    (`remains.epoch`).
    """

    name: str
    token: str  # marks the run's processes
    epoch: str
    guard_pid: int
    guard_start: str
    engine_pid: int
    engine_start: str
    orphans: Literal["kill", "adopt"]
    host: str
    port: int
    model: str
    fingerprint: str  # stands for what was launched
    grace: float
    cleanup: tuple[str, ...]
    started: float  # Unix time
    log: str
    status: str  # the file in which the guard says how it ended


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended. `status`: negative for a signal, None where nobody knows. `asked`: it had been told to."""

    status: int | None
    text: str
    asked: bool = False


class Running:
    """One engine and its guard. Belongs to the event loop in which it was made; every method may be called at any time.

    Whoever has it must let it end (`stop`) or `close` it.
    """

    def __init__(self, record: Record, pidfd: int | None, lifeline: int | None, *, child: bool) -> None:
        """Takes over `pidfd` (the guard's, where the system has such) and `lifeline`. `child`: the guard is this
        process's, to be reaped here."""
        self.record = record
        self._pidfd = pidfd
        self._lifeline = lifeline
        self._child = child
        self._asked = False
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._watching = self._loop.create_task(self._watch(), name=f"watch {record.name}")

    @property
    def has_ended(self) -> bool:
        return self._exit.done()

    async def ended(self) -> Exit:
        """Blocks until the engine and everything that it started are gone. For any number of waiters."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace: float) -> Exit:
        """End it: SIGTERM, after `grace` seconds SIGKILL (after those that it was spawned with, if they are fewer).
        Blocks until it and everything that it started are gone. Of several calls the shortest grace counts; a caller
        that is cancelled stops none of this."""
        self.ask_to_stop(grace)
        return await self.ended()

    def ask_to_stop(self, grace: float) -> None:
        """What `stop` does, without waiting for the end."""
        if self.has_ended:
            return
        if not self._asked:
            self._asked = True
            self._signal(signal.SIGTERM)
        self._timers.append(self._loop.call_later(max(grace, 0.0), self._hurry))

    def pids(self) -> list[int]:
        """The engine and what it started, as far as alive. Reads the process table: blocks some milliseconds."""
        if self.has_ended:
            return []
        table = guard.processes()
        if not table:
            return [self.record.engine_pid]
        return [row.pid for row in guard.descendants([self.record.guard_pid], table) if not row.zombie]

    def release(self) -> None:
        """With `orphans="adopt"`: from now on it outlives this process. To be called once its record is on disk, for
        until then nobody could find it again. Else it does nothing."""
        if self.record.orphans == "adopt" and self._lifeline is not None:
            with suppress(OSError):
                os.write(self._lifeline, RELEASE)
            self._drop_lifeline()

    def close(self) -> None:
        """Watch it no longer; waiters are cancelled. It goes on if it was released, else its guard ends it."""
        self._watching.cancel()
        self._exit.cancel()
        self._let_go()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _signal(self, number: int) -> None:
        """To the guard, and to nobody else."""
        with suppress(OSError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            elif not self.has_ended and start_time(self.record.guard_pid) == self.record.guard_start:
                os.kill(self.record.guard_pid, number)

    def _hurry(self) -> None:
        self._signal(signal.SIGQUIT)
        self._signal(signal.SIGCONT)  # somebody may have stopped it
        # A guard that doesn't do its work is ended too, and `_watch` does it in its place.
        self._timers.append(self._loop.call_later(MARGIN, self._signal, signal.SIGKILL))

    async def _watch(self) -> None:
        try:
            how = await self._guard_gone()
            told = last_status(self.record)
            if told is None:
                ending = await self._clear_up(how)
            else:
                ending = explain(told)
            forget_status(self.record)
            self._exit.set_result(ending)
        except Exception as exc:  # noqa: BLE001 - whoever waits for the end must hear of it
            self._exit.set_exception(exc)
        finally:
            self._let_go()

    async def _clear_up(self, how: int | None) -> Exit:
        """The guard is gone and has not said how the engine ended: it was killed itself."""
        run = self.record
        left = await remains.end(run.token, run.engine_pid, run.engine_start, certain=True)
        await remains.clean_up(run.cleanup)
        why = "" if how is None else f" ({describe(how)})"
        return Exit(None, f"its guard process ended before it{why}{resisting(left)}", self._asked)

    async def _guard_gone(self) -> int | None:
        """Blocks until the guard has ended; its exit status where this process is told."""
        if self._pidfd is not None:
            gone = asyncio.Event()
            self._loop.add_reader(self._pidfd, gone.set)
            await gone.wait()
            self._loop.remove_reader(self._pidfd)
        while True:
            if self._child:
                try:
                    status = remains.reap(self.record.guard_pid)
                except ChildProcessError:  # somebody else took it
                    return None
                if status is not None:
                    return status
            elif self._pidfd is not None or start_time(self.record.guard_pid) != self.record.guard_start:
                return None
            await asyncio.sleep(POLL)

    def _let_go(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._drop_lifeline()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _drop_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def start_time(pid: int) -> str | None:
    """When a living process started, as text that only compares; None where it is gone or a zombie."""
    row = guard.process(pid)
    if row is not None or sys.platform == "linux":
        return None if row is None or row.zombie else row.start
    shown = subprocess.run(  # noqa: S603
        ("/bin/ps", "-o", "lstart=", "-p", str(pid)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None


def open_pidfd(pid: int) -> int | None:
    """A handle on that process that can't come to mean another; None where the system has none, or no such process."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


# --- what the guard said ---------------------------------------------------------------------------------------------


def last_status(record: Record) -> dict[str, Any] | None:
    """The guard's last words; None where it has none yet, or was killed before them."""
    told = read_status(record)
    return told if "ended" in told else None


def read_status(record: Record) -> dict[str, Any]:
    """Empty while the engine runs; then something."""
    try:
        told = json.loads(Path(record.status).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def forget_status(record: Record) -> None:
    with suppress(OSError):
        Path(record.status).unlink()


def explain(told: dict[str, Any]) -> Exit:
    """The guard's last words for people."""
    status, asked, forced = told.get("status"), bool(told.get("asked")), bool(told.get("forced"))
    if status is None:
        return Exit(None, f"still there after SIGKILL{resisting(told.get('left', []))}", asked)
    text = describe(status)
    if asked and forced and status == -signal.SIGKILL:
        text += ", since it did not end when asked to"
    elif status == -signal.SIGKILL:
        text += " (out of memory?)"
    return Exit(status, text + resisting(told.get("left", [])), asked)


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def resisting(pids: list[int]) -> str:
    """For the end of a sentence; empty where none is left."""
    if not pids:
        return ""
    return f"; can't be killed and may still hold memory: process {', '.join(map(str, pids))}"
