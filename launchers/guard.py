"""The process around one engine: starts it, and sees to it that nothing of it is left when it ends.

Run by path, in a process of its own (`python -I -S guard.py NAME`, the plan as JSON on stdin), with nothing but the
standard library, so that it costs a few megabytes and milliseconds. What it holds when it starts: stdin the plan;
stdout and stderr the engine's log; fd 3 the *lifeline*, a pipe whose other end only the launcher has: its end of file
is the launcher's death, unless a byte came before; fd 4 a pipe on which it says once how the start went.

Also here, because this file can import nothing of ours: reading the table of processes. Not here: what is started and
why (`process`), what becomes of a guard that was killed itself (`remains`).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

LIFELINE, REPORT = 3, 4  # file descriptors
MARK = "LAUNCHED_BY_ILLM"  # environment variable by which every process of a run is known, even one that left its tree
STUCK = 20.0  # seconds after which processes that survive SIGKILL (in a driver, mostly) are given up
CLEANUP = 30.0  # seconds for the cleanup command
LOOK = 0.05  # seconds between two looks at what is left, where no signal tells
FAILED = 70  # exit status: the engine was not started

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_OURS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD)
_IGNORED = (signal.SIGINT, signal.SIGHUP)  # of a terminal: whether engines end then is the launcher's to say


# --- the table of processes ------------------------------------------------------------------------------------------


class Process:
    """A row of the process table, as it was. `start`: clock ticks after boot, text (proc(5), stat, field 22)."""

    __slots__ = ("group", "parent", "pid", "session", "start", "zombie")

    def __init__(self, pid: int, stat: str) -> None:
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        self.pid = pid
        self.zombie = fields[0] in "ZX"
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.start = fields[19]


def process(pid: int) -> Process | None:
    """None where there is no such process, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            return Process(pid, file.read())
    except (OSError, IndexError):
        return None


def processes() -> dict[int, Process]:
    """All that this user may see; empty where there is no /proc (macOS)."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    found = (process(int(name)) for name in names if name.isdigit())
    return {row.pid: row for row in found if row is not None}


def descendants(roots: Sequence[int], table: dict[int, Process]) -> list[Process]:
    """Children of `roots`, their children, and so on, zombies too."""
    children: dict[int, list[Process]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row)
    found: list[Process] = []
    todo = list(roots)
    while todo:
        born = children.pop(todo.pop(), [])
        found += born
        todo += [row.pid for row in born]
    return found


def prctl(option: int, value: int) -> bool:
    """Whether it could be done: False on anything but Linux."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def become_subreaper() -> bool:
    """From now on, processes below this one whose parent dies become its children (prctl(2)). False: not to be had."""
    return prctl(_SET_CHILD_SUBREAPER, 1)


# --- starting --------------------------------------------------------------------------------------------------------


class CantStart(Exception):
    """`args`: an errno, and whether it was the working directory's fault."""


def start(argv: list[str], env: dict[str, str], cwd: str | None) -> int:
    """Run a program in a session of its own that dies with this process; its pid, once it runs. Raises `CantStart`."""
    reader, writer = os.pipe()  # closed by a successful exec
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, parent, writer)
    os.close(writer)
    with open(reader, "rb") as answer:
        failure = answer.read()
    if failure:
        os.waitpid(pid, 0)
        number, at_cwd = failure.split()
        raise CantStart(int(number), at_cwd == b"1")
    return pid


def _become(argv: list[str], env: dict[str, str], cwd: str | None, parent: int, failures: int) -> None:
    """In the child: turn into the program. Never returns."""
    at_cwd = True
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be tied to
            os._exit(FAILED)
        for number in (*_OURS, *_IGNORED, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        if cwd is not None:
            os.chdir(cwd)
        at_cwd = False
        os.execvpe(argv[0], argv, env)  # noqa: S606 - no shell is the point
    except OSError as exc:
        os.write(failures, b"%d %d" % (exc.errno or 0, at_cwd))
    except ValueError:  # a zero byte in a word
        os.write(failures, b"%d %d" % (errno.EINVAL, at_cwd))
    finally:
        os._exit(FAILED)


# --- the guard -------------------------------------------------------------------------------------------------------


class Guard:
    """One engine, from its start to its very end. Its arguments are the members of the plan.

    A stop is asked for by SIGTERM or by the lifeline's end; a second SIGTERM, or SIGQUIT, leaves the grace time out.
    """

    def __init__(
        self, *, argv: list[str], env: dict[str, str], cwd: str | None, cleanup: list[str], grace: float, status: str
    ) -> None:
        self.argv, self.env, self.cwd, self.cleanup = argv, env, cwd, cleanup
        self.grace, self.status_file = grace, status
        self.engine = 0
        self.status: int | None = None  # the engine's, once it ended; negative: a signal
        self.asked = self.hurry = self.stopping = False
        self._wake = _wake_fd()
        self._poll = select.poll()
        for fd in (self._wake, LIFELINE):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> int:
        """Blocks until the engine and all that it started are gone; the exit status for this process."""
        try:
            self.engine = start(self.argv, self.env, self.cwd)
        except CantStart as exc:
            _report({"errno": exc.args[0], "cwd": exc.args[1]})
            return FAILED
        row = process(self.engine)
        _report({"engine": self.engine, "start": row.start if row is not None else ""})
        while self.reap() and self.status is None and not self.asked:
            self.wait(None)
        asked, self.stopping = self.asked and self.status is None, True
        self.note({"stopping": True})
        forced, left = self.stop()
        self.clean_up()
        self.note({"status": self.status, "asked": asked, "forced": forced, "left": left, "ended": time.time()})
        status = FAILED if self.status is None else self.status
        return status if status >= 0 else 128 - status

    def stop(self) -> tuple[bool, list[int]]:
        """End the engine and everything that it started. Whether force was needed, and which processes resist.

        1. SIGTERM to the engine's group (and SIGCONT: who is stopped can't act on it).
        2. Up to the grace time for every descendant to end. Once the engine itself has, those that had left its group
           (daemons) are asked too: before, they may be what it needs to end well.
        3. SIGKILL to the group.
        4. SIGKILL to whatever else descends from here. As a sub-reaper this process inherits every orphan below it, so
           walking down from it finds them all, and having no child left means that there is none. Again until then,
           since one may fork while another is killed.

        Where the engine ended by itself, what it left behind is ended in the same way.
        """
        asked: set[int] = set()
        deadline = time.monotonic() + self.grace
        self.signal_group(signal.SIGTERM)
        self.signal_group(signal.SIGCONT)
        while self.left() and not self.hurry and time.monotonic() < deadline:
            if self.status is not None:
                self.ask_the_rest(asked)
            self.wait(min(LOOK, max(deadline - time.monotonic(), 0)))
        forced = self.left()
        deadline = time.monotonic() + STUCK
        while self.left() and time.monotonic() < deadline:
            self.signal_group(signal.SIGKILL)
            for row in self.below():
                _kill(row.pid, signal.SIGKILL)
            self.wait(LOOK)
        return forced, [row.pid for row in self.below()]

    def clean_up(self) -> None:
        """Run the cleanup command, at most `CLEANUP` seconds."""
        if not self.cleanup:
            return
        try:
            pid = start(self.cleanup, self.env, None)
        except CantStart as exc:
            _say(f"the cleanup command {self.cleanup[0]!r} can't be run: {os.strerror(exc.args[0])}")
            return
        deadline = time.monotonic() + CLEANUP
        while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                _say(f"the cleanup command {self.cleanup[0]!r} took longer than {CLEANUP:g} s")
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                found = os.waitpid(pid, 0)
                break
            self.wait(LOOK)
        if status := os.waitstatus_to_exitcode(found[1]):
            _say(f"the cleanup command {self.cleanup[0]!r} ended with {status}")

    def wait(self, seconds: float | None) -> None:
        """Blocks until a signal or the lifeline's end, at most that long, and notes what it asks for."""
        for fd, _ in self._poll.poll(None if seconds is None else int(seconds * 1000) + 1):
            if fd == LIFELINE:
                self._poll.unregister(LIFELINE)
                if not os.read(LIFELINE, 1):  # else: the launcher let go, and may end
                    self.asked = True
                continue
            for number in os.read(self._wake, 512):
                if number == signal.SIGTERM:
                    self.hurry = self.hurry or self.asked or self.stopping
                    self.asked = True
                elif number == signal.SIGQUIT:
                    self.asked = self.hurry = True

    def reap(self) -> bool:
        """Take every child that has ended, orphans too. False: there is no child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.engine:
                self.status = os.waitstatus_to_exitcode(status)

    def left(self) -> bool:
        """Whether anything of the engine is left."""
        if self.reap():
            return True
        if sys.platform == "linux":
            return False
        try:  # orphans don't come back to us here; the group is all that is known of them
            os.killpg(self.engine, 0)
        except OSError:
            return False
        return True

    def below(self) -> list[Process]:
        return descendants([os.getpid()], processes())

    def signal_group(self, number: int) -> None:
        """To the engine's group; only while there is one, for its number may become another's then."""
        alone = self.status is not None and sys.platform == "linux"
        if not alone or any(row.group == self.engine for row in self.below()):
            with suppress(OSError):
                os.killpg(self.engine, number)

    def ask_the_rest(self, asked: set[int]) -> None:
        """SIGTERM, once, to descendants outside the engine's group."""
        for row in self.below():
            if row.group != self.engine and row.pid not in asked:
                asked.add(row.pid)
                _kill(row.pid, signal.SIGTERM)

    def note(self, state: dict[str, object]) -> None:
        """Into the status file, whole or not at all. A full disk must not keep an engine alive."""
        new = f"{self.status_file}.new"
        with suppress(OSError):
            with open(new, "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump(state, file)
            os.replace(new, self.status_file)


def _wake_fd() -> int:
    """A pipe that gets the number of every signal that this process heeds; its end to read from."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _OURS:
        signal.signal(number, lambda number, frame: None)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    return reader


def _report(answer: dict[str, object]) -> None:
    with suppress(OSError):  # the launcher is gone: the lifeline tells
        os.write(REPORT, json.dumps(answer).encode())
    os.close(REPORT)


def _say(text: str) -> None:
    """A line in the engine's log."""
    with suppress(OSError):
        os.write(2, f"=== illm: {text}\n".encode(errors="replace"))


def _kill(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def main() -> int:
    with suppress(OSError):
        os.setsid()  # it fails where that was done already
    os.closerange(REPORT + 1, min(os.sysconf("SC_OPEN_MAX"), 65536))  # whatever a library of the launcher leaked
    for fd in (LIFELINE, REPORT):
        os.set_inheritable(fd, False)
    with open(0, encoding="ascii", closefd=False) as file:
        plan = json.load(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    become_subreaper()
    return Guard(**plan).run()


if __name__ == "__main__":
    sys.exit(main())
