"""Memory that all processes of a gateway see: a row of counters for each backend, and the connections of each process.

A process writes only what is its own, save under a row's lock (`Turn`), so what one that was killed leaves behind can
be struck out by the parent: nothing is lost with it, no place and no lock. Not here: what the counters mean (`places`,
`sharing`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Final

ROWS: Final = 1024  # backends at a time
CELL: Final = 8  # bytes: one write, which no other process sees half of
ABSENT: Final = -1  # connections of a process that takes none
_NAME = slice(0, 2)  # who the row is for
_COMMON: Final = 7  # cells before those that each process has: name (2), ticket, failures, strikes (3)


class Turn:
    """A lock between processes, a context manager; one that dies holds none. Blocks, for as long as another one is in
    it: microseconds. Two system calls."""

    __slots__ = ("_at", "_fd")

    def __init__(self, fd: int, at: int) -> None:
        self._fd = fd
        self._at = at

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._at)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._at)


class Row:
    """One backend's cells. A list has one for each process."""

    __slots__ = ("failures", "heads", "held", "strikes", "ticket", "turn", "used", "waiting")

    def __init__(self, cells: memoryview, turn: Turn, processes: int) -> None:
        self.turn = turn
        self.ticket, self.failures = cells[2:3], cells[3:4]
        self.strikes = cells[4:7].cast("B").cast("d")
        each = [cells[at : at + processes] for at in range(_COMMON, _COMMON + 4 * processes, processes)]
        self.used, self.held, self.waiting, self.heads = each


class Table:
    """`me`: this process, one of `processes`; the parent is the last."""

    def __init__(self, fd: int, processes: int, me: int) -> None:
        self.fd = fd
        self.processes = processes
        self.me = me
        self._width = _COMMON + 4 * processes
        self._cells = memoryview(mmap.mmap(fd, _size(processes))).cast("B").cast("q")
        self.connections = self._cells[:processes]
        self._directory = Turn(fd, ROWS)
        self.log = Turn(fd, ROWS + 1)  # for lines that must not be mixed

    def claim(self, name: str) -> Row | None:
        """The row of that name, the same in all processes; None where there are too many. Whoever claims it releases
        it."""
        digest = memoryview(blake2b(name.encode(), digest_size=2 * CELL).digest()).cast("q")
        with self._directory:
            free = None
            for number in range(ROWS):
                span = self._span(number)
                if not any(span[_COMMON : _COMMON + self.processes]):
                    free = number if free is None else free
                elif span[_NAME] == digest:
                    break
            else:
                if free is None:
                    return None
                number, span = free, self._span(free)
                for at in range(self._width):
                    span[at] = 0
                span[_NAME] = digest
            row = Row(span, Turn(self.fd, number), self.processes)
            row.used[self.me] = 1
        return row

    def release(self, row: Row) -> None:
        row.used[self.me] = 0

    def strike_out(self, process: int) -> None:
        """That process is dead: whatever it held is free, and nobody waits there any more."""
        self.connections[process] = ABSENT
        for number in range(ROWS):
            span = self._span(number)
            if span[_COMMON + process]:
                row = Row(span, Turn(self.fd, number), self.processes)
                with row.turn:
                    row.held[process] = row.waiting[process] = row.heads[process] = row.used[process] = 0

    def _span(self, number: int) -> memoryview:
        start = self.processes + number * self._width
        return self._cells[start : start + self._width]


class Bells:
    """With which processes wake one another: a pipe for each, of which everybody has both ends. Nobody blocks."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.pairs = tuple(pairs)

    def ring(self, process: int) -> None:
        if process < len(self.pairs):  # the parent has none: it never waits
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self.pairs[process][1], b"!")

    def ring_all(self) -> None:
        for process in range(len(self.pairs)):
            self.ring(process)

    def heard(self, process: int) -> None:
        """Take note: it won't wake for what was rung up to now."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.pairs[process][0], 4096)


def new_table(processes: int) -> Table:
    """The parent's. The memory ends with the last process that has it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("illm")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _size(processes))
    table = Table(fd, processes, processes - 1)
    for process in range(processes):
        table.connections[process] = ABSENT
    return table


def new_bells(workers: int) -> Bells:
    pairs = [os.pipe() for _ in range(workers)]
    for pair in pairs:
        for fd in pair:
            os.set_blocking(fd, False)
    return Bells(pairs)


def _size(processes: int) -> int:
    return CELL * (processes + ROWS * (_COMMON + 4 * processes))
