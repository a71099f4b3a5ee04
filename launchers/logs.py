"""The log of one engine: a file that the engine writes to itself, followed from here, kept small, and shown.

The engine has the file and no pipe, so that it goes on when the launcher is gone. What was read last is in memory, a
bounded number of lines without colours and keys. Which lines mean what is not known here but to those who listen.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from launchers.last_words import telling

TICK: Final = 0.1  # seconds between two looks at the file
GULP: Final = 1 << 18  # bytes that one look reads; of a flood beyond that only the end is read
PRIMED: Final = 1 << 18  # bytes of an earlier launcher's time that are shown
LONGEST: Final = 1 << 14  # bytes of a line; a longer one is cut in pieces
REMARK: Final = "=== illm: "  # begins a line of ours, also one of the guard's
START: Final = "=== illm starts "  # begins the line with which a start begins

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # after a last \r there may come its \n
_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")  # ECMA-48
_CONTROLS: Final = dict.fromkeys((*range(9), *range(10, 32), 127))


class EngineLog:
    """Belongs to one event loop; `run` is its task, and without it nothing is rotated and no listener hears.

    `hide`: texts that are blotted out wherever lines are shown, which is everywhere but in the file.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = 10 << 20, keep: int = 3, ring: int = 1000, hide: tuple[str, ...] = ()
    ) -> None:
        self.path = path.absolute()
        self._hide = tuple(filter(None, hide))
        self._size = ring
        self._max_bytes = max_bytes
        self._keep = keep
        self._ring: deque[tuple[int, str]] = deque(maxlen=ring)  # numbered, so that followers know what they had
        self._count = 0  # the newest one's number
        self._dropped = 0  # the number of the newest one that fell out
        self._passing = False  # the newest one is overwritten by what comes next, as on a terminal
        self._listeners: list[Callable[[str], None]] = []
        self._fd = -1
        self._at = 0  # bytes of the file that were read
        self._partial = b""  # a line without its end
        self._shown = b""  # as much of it as was shown
        self._news = asyncio.Event()
        self._closed = False
        self._told = (0, False)

    def hide(self, texts: tuple[str, ...]) -> None:
        """Blot these out from now on, too: lines of an earlier key may still be there."""
        self._hide = tuple(dict.fromkeys((*self._hide, *filter(None, texts))))

    def open(self) -> int:
        """A descriptor for the engine's stdout and stderr, which the caller closes. Raises OSError."""
        if self._fd >= 0 and not _is_at(self._fd, self.path):  # somebody removed it
            os.close(self._fd)
            self._fd, self._at = -1, 0
        self._file()
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mark(self, text: str) -> None:
        """A line of ours in the log, with the time: here begins a start of what `text` says. Raises OSError."""
        self.last(0)  # what was there before belongs before it
        line = f"{START}{time.strftime('%Y-%m-%d %H:%M:%S')} {self._blot(text)}"
        broken = b"\n" if self._partial else b""
        os.write(self._file(), broken + " ".join(line.splitlines()).encode(errors="replace") + b"\n")

    async def run(self) -> None:
        """Follows the file until cancelled; then followers end. A file that can't be read is tried again."""
        try:
            while True:
                with suppress(OSError):
                    self.look()
                    self._rotate()
                await asyncio.sleep(TICK)
        finally:
            self.close()

    def close(self) -> None:
        """Reads what is left, ends followers and closes the file. Idempotent."""
        with suppress(OSError):
            if self._fd >= 0:
                self.look()
        self._closed = True
        self._tell()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._at = -1, 0

    @contextmanager
    def listening(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Inside, every line is given to it: at once those since the last mark, then each that is read, a growing one
        (a progress bar) whenever it grew. It must not raise."""
        for line in self.since_mark(self._size):
            listener(line)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def last(self, count: int) -> list[str]:
        """The last lines. Looks at the file, so that they are."""
        with suppress(OSError):
            self.look()
            self.look()  # a line without an end is there to be seen once nothing follows it
        return [line for _, line in self._ring][max(len(self._ring) - count, 0) :]

    def since_mark(self, count: int) -> list[str]:
        """The last lines of those after the last mark."""
        lines = self.last(self._size)
        marks = [place for place, line in enumerate(lines) if line.startswith(START)]
        lines = lines[marks[-1] + 1 if marks else 0 :]
        return lines[max(len(lines) - count, 0) :]

    def last_words(self, count: int = 20) -> str:
        """The lines since the last mark that tell best why the engine ended (`last_words.telling`); none of ours."""
        own = [line for line in self.since_mark(self._size) if not line.startswith(REMARK)]
        return "\n".join(telling(own, count))

    async def follow(self, tail: int) -> AsyncGenerator[str, None]:
        """The last `tail` lines, then every new one, until `run` ends. Who is too slow misses lines, and is told."""
        self.last(0)
        numbers = [number for number, _ in self._ring]
        had = max(numbers[: max(len(numbers) - tail, 0)], default=self._dropped)
        while True:
            news = self._news  # before looking: what comes in between is not slept through
            if self._dropped > had:
                yield f"{REMARK}lines are left out here; {self.path} has them"
            for number, line in [entry for entry in self._ring if entry[0] > had]:
                had = number
                yield line
            if self._closed and had == self._count:
                return
            await news.wait()

    # --- reading -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what was written since, at most `GULP` bytes. Raises OSError."""
        if self._closed:
            return
        fd = self._file()
        size = os.fstat(fd).st_size
        if size < self._at:  # somebody else cut it
            self._at, self._partial = 0, b""
        if size - self._at > GULP:
            self._at, self._partial = size - GULP, b""
            self._show(f"{REMARK}a flood of lines is left out here; {self.path} has them", passing=False)
        if data := os.pread(fd, size - self._at, self._at):
            self._at += len(data)
            self._take(data)
        elif self._partial != self._shown:  # nothing came after it for a while, so it is there to be seen
            self._shown = self._partial
            if self._partial.strip():
                self._show(self._clean(self._partial), passing=True)
        self._tell()

    def _file(self) -> int:
        """The file, opened. The first time, what an earlier launcher left in it is taken in, unheard by listeners."""
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._fd).st_size
            self._at = size
            if size and not self._count:
                start = max(size - PRIMED, 0)
                data = os.pread(self._fd, size - start, start)
                listeners, self._listeners = self._listeners, []
                self._take(data[data.find(b"\n") + 1 :] if start else data)
                self._listeners = listeners
        return self._fd

    def _take(self, data: bytes) -> None:
        text, start = self._partial + data, 0
        for end in _LINE_END.finditer(text):
            self._line(text[start : end.start()], passing=end[0] == b"\r")
            start = end.end()
        text = text[start:]
        while len(text) > LONGEST:
            self._line(text[:LONGEST], passing=False)
            text = text[LONGEST:]
        self._partial, self._shown = text, b""

    def _line(self, line: bytes, *, passing: bool) -> None:
        if line or not (passing or self._passing):
            for start in range(0, max(len(line), 1), LONGEST):
                self._show(self._clean(line[start : start + LONGEST]), passing=passing)
        elif not passing:
            self._passing = False  # a progress bar that has come to its end

    def _show(self, line: str, *, passing: bool) -> None:
        if self._passing and self._ring:
            self._ring.pop()
        elif len(self._ring) == self._size:
            self._dropped = self._ring[0][0]
        self._count += 1
        self._ring.append((self._count, line))
        self._passing = passing
        for listener in tuple(self._listeners):
            listener(line)

    def _clean(self, line: bytes) -> str:
        text = _SEQUENCE.sub("", line.decode("utf-8", "replace")).translate(_CONTROLS)
        return self._blot(text)

    def _blot(self, text: str) -> str:
        for secret in sorted(self._hide, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _tell(self) -> None:
        """Wake the followers, if there is something new."""
        if self._told != (self._count, self._closed):
            self._told = (self._count, self._closed)
            news, self._news = self._news, asyncio.Event()
            news.set()

    # --- keeping it small --------------------------------------------------------------------------------------------

    def _rotate(self) -> None:
        """Copy the file away and empty it, where it has grown too large. Raises OSError.

        The engine goes on writing to the same file, so what it writes in the moment between the last copied byte and
        the cut is lost; there is no way to have both without a process in between.
        """
        fd = self._file()
        if os.fstat(fd).st_size <= self._max_bytes:
            return
        try:
            if self._keep > 0:
                for number in range(self._keep - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        os.replace(self._copy(number), self._copy(number + 1))
                with open(self._copy(1), "wb", opener=_private) as copy:
                    offset = 0
                    while part := os.pread(fd, GULP, offset):
                        offset += copy.write(part)
            self.look()
        finally:  # also on a full disk: more than ever
            os.ftruncate(fd, 0)
            self._at = 0

    def _copy(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_at(fd: int, path: Path) -> bool:
    """Whether that descriptor is of the file that has that name now."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False
