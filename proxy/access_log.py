"""One JSON line for each request, on standard output, a few times a second rather than one system call each.

A line begins with the time of the request's end, which is put into words when the lines are written.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractContextManager, nullcontext
from time import gmtime, strftime, time
from typing import Final

from proxy.call import Call, clock
from proxy.wire import dump

FLUSH: Final = 0.1  # seconds that a line may wait
FULL: Final = 256  # lines that are written at once, some 64 KiB


class AccessLog:
    """Whoever makes it calls `close`, which writes what is left. Lines that can't be written are dropped: a full disk
    must not stop the gateway. `turn` is held while writing, where other processes write there too: what is longer than
    a pipe's page might be mixed otherwise."""

    def __init__(self, fd: int = 1, turn: AbstractContextManager[None] | None = None) -> None:
        self._fd = fd
        self._turn = turn or nullcontext()
        self._ended: list[tuple[Call, float]] = []  # not written yet
        self._timer: asyncio.TimerHandle | None = None

    def write(self, call: Call, now: float) -> None:
        """That call ended now; its line is made with those of others."""
        self._ended.append((call, now))
        if len(self._ended) >= FULL:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        if ended:
            begun = time() - clock()
            lines = [(begun + now, dump(call.line(now))) for call, now in ended]
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
