"""One JSON line for each request, on standard output, a few times a second rather than one system call each.

A line begins with the time of the request's end, which is put into words when the lines are written.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractContextManager, nullcontext
from time import gmtime, strftime, time
from typing import Any, Final

from proxy.wire import dump

FLUSH: Final = 0.1  # seconds that a line may wait
FULL: Final = 64 * 1024  # bytes that are written at once


class AccessLog:
    """Whoever makes it calls `close`, which writes what is left. Lines that can't be written are dropped: a full disk
    must not stop the gateway. `turn` is held while writing, where other processes write there too: what is longer than
    a pipe's page might be mixed otherwise."""

    def __init__(self, fd: int = 1, turn: AbstractContextManager[None] | None = None) -> None:
        self._fd = fd
        self._turn = turn or nullcontext()
        self._lines: list[tuple[float, bytes]] = []  # when, and a line's members
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, line: dict[str, Any]) -> None:
        text = dump(line)
        self._lines.append((time(), text))
        self._size += len(text)
        if self._size > FULL:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            try:
                with self._turn:
                    os.write(self._fd, timed(lines))
            except OSError:
                return

    def close(self) -> None:
        self.flush()


def timed(lines: list[tuple[float, bytes]]) -> bytes:
    """The lines as they are written, each with its time: ISO 8601, UTC, milliseconds."""
    written: list[bytes] = []
    second, shown = -1, b""
    for at, text in lines:
        whole = int(at)
        if whole != second:
            second, shown = whole, strftime("%Y-%m-%dT%H:%M:%S", gmtime(whole)).encode()
        written.append(b'{"time":"%b.%03dZ",%b\n' % (shown, int((at - whole) * 1000), text[1:]))
    return b"".join(written)
