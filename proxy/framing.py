"""Bytes to frames: server-sent events, newline-delimited JSON, and where a buffer may be cut.

A leaf and sans-IO: bytes go in as they were read, in pieces of any size, and frames come out. A parser is one
object for one body and holds at most one unfinished frame, whose size is bounded.

Lines end with LF, CRLF or CR in events and with LF alone in NDJSON; Unicode's other separators end nothing.
Not here: what a frame says (no JSON), and writing frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DEFAULT_LIMIT: Final = 16 * 1024 * 1024

_BOM: Final = b"\xef\xbb\xbf"
# Standard fields that nobody here has a use for: they make no event by themselves.
_IGNORED: Final = frozenset({"id", "retry"})
_EVENT: Final = re.compile(rb".*?(?:\r\n|\n|\r(?!\n)){2}[\r\n]*", re.DOTALL)  # with all line ends behind it
# A line end (or the buffer's start) with blank lines behind it. Possessive, or CRLF would count as two line ends.
_BLANK_LINES: Final = re.compile(rb"(?:\A|\r\n?+|\n)(?:\r\n?+|\n)+")


class FrameTooLong(ValueError):
    """One frame exceeds the limit: the peer is broken or hostile, and the body can't be read on."""


@dataclass(slots=True, init=False)
class Event:
    """One server-sent event. `data` is None where it had no data line; `fields` are those that the standard does
    not know, such as the `error:` of old llama.cpp servers. Bytes that are no UTF-8 became U+FFFD."""

    event: str | None
    data: str | None
    fields: dict[str, str]

    def __init__(self, event: str | None, data: str | None, fields: dict[str, str] | None = None) -> None:
        self.event = event
        self.data = data
        self.fields = fields if fields is not None else {}


class SseParser:
    """Splits an event stream. `feed` gives the events that are complete, at once: a CR ends a line without
    waiting for the LF that may follow it. Both verbs raise `FrameTooLong` for an event above `limit` bytes."""

    __slots__ = ("_after_cr", "_buffer", "_limit", "_start")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()  # LF only, whatever came
        self._after_cr = False
        self._start: bytes | None = b""  # the first bytes, while they may be a BOM; then None

    def feed(self, data: bytes) -> list[Event]:
        if self._start is not None:
            data = self._skip_bom(data)
        if b"\r" in data or self._after_cr:
            data = self._to_lf(data)
        if not self._buffer and data.endswith(b"\n\n"):
            return self._events(data)
        buffer = self._buffer
        searched = max(len(buffer) - 1, 0)
        buffer += data
        end = buffer.rfind(b"\n\n", searched)
        if end < 0:
            self._check(len(buffer))
            return []
        complete = bytes(buffer[: end + 2])
        del buffer[: end + 2]
        self._check(len(buffer))
        return self._events(complete)

    def flush(self) -> list[Event]:
        """The body has ended: the event that lacked its blank line, if any. The standard would drop it, but
        servers do end like this."""
        rest = (self._start or b"") + bytes(self._buffer)
        self._start = None
        self._buffer.clear()
        return self._events(rest)

    def _skip_bom(self, data: bytes) -> bytes:
        start = (self._start or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _to_lf(self, data: bytes) -> bytes:
        if not data:
            return data
        behind_cr, self._after_cr = self._after_cr, data.endswith(b"\r")
        if behind_cr:
            data = data.removeprefix(b"\n")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, blocks: bytes) -> list[Event]:
        events = []
        for block in blocks.split(b"\n\n"):
            if block:
                self._check(len(block))
                event = _parse(block)
                if event is not None:
                    events.append(event)
        return events

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise FrameTooLong(f"a server-sent event is longer than {self._limit} bytes")


def _parse(block: bytes) -> Event | None:
    text = block.decode("utf-8", "replace")
    if text.startswith("data:") and "\n" not in text:
        return Event(None, text[5:].removeprefix(" "))
    name: str | None = None
    data: list[str] = []
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
        elif key and key not in _IGNORED:  # no key: a comment or an empty line
            fields[key] = value
    if not data and not fields:
        return None
    return Event(name, "\n".join(data) if data else None, fields)


class NdjsonParser:
    """Splits newline-delimited JSON into its lines, without the LF; blank ones are skipped. Both verbs raise
    `FrameTooLong` for a line above `limit` bytes."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        end = data.rfind(b"\n")
        if end < 0:
            self._buffer += data
            self._check(len(self._buffer))
            return []
        complete = bytes(self._buffer) + data[:end] if self._buffer else data[:end]
        self._buffer[:] = data[end + 1 :]
        self._check(len(self._buffer))
        return self._lines(complete)

    def flush(self) -> list[bytes]:
        """The body has ended: the line that lacked its LF, if any."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self._lines(rest)

    def _lines(self, complete: bytes) -> list[bytes]:
        lines = [line for line in complete.split(b"\n") if line and not line.isspace()]
        for line in lines:
            self._check(len(line))
        return lines

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise FrameTooLong(f"a line is longer than {self._limit} bytes")


def complete_prefix(buffer: bytes) -> int:
    """How many bytes of `buffer`, which begins at an event's start, belong to events that are complete.

    What is cut off there may be sent on its own, and a comment or another event may follow it. A CR that ends a
    blank line counts at once; if its LF comes with the next read, that is one more blank line, which says nothing.
    """
    if buffer.endswith(b"\n\n"):
        return len(buffer)
    if b"\r" not in buffer:
        end = buffer.rfind(b"\n\n")
        if end >= 0:
            return end + 2
        return 1 if buffer.startswith(b"\n") else 0
    prefix = 0
    for match in _BLANK_LINES.finditer(buffer):
        prefix = match.end()
    return prefix


def split_events(data: bytes) -> list[bytes]:
    """Whole events, as they stand; each with the blank lines behind it."""
    if data.find(b"\r") >= 0:
        return _EVENT.findall(data)
    events = []
    begin = 0
    while begin < len(data):
        end = data.find(b"\n\n", begin)
        if end < 0:
            break
        end += 2
        while data.startswith(b"\n", end):
            end += 1
        events.append(data[begin:end])
        begin = end
    return events
