"""The head of a client's request, read once: what it says, and how to know it again.

A client that keeps its connection sends the same head with each request, but for the length of the body. Such a head
is compared with the last one instead of being parsed and looked through anew (docs/data-path.md has what that saves):
every byte must be the same, the digits of `content-length` excepted. What llhttp accepted once is true once more.

Not here: sockets, and when a head may be taken for a repeated one (`client_connection`); what a head asks for.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import httptools

from proxy.headers import Named, RawHeaders, named

DIGITS: Final = 15  # of a content-length that is known again
KEPT: Final = 256  # heads that connections share
LONGEST: Final = 4096  # bytes of one of them
_LENGTH: Final = b"content-length"
_LENGTH_LINE: Final = b"\r\ncontent-length:"
_UNLIKE_OTHERS: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class Heads:
    """Those that many connections send: clients open several, and each sends the same. At most `KEPT`."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes], Head] = {}

    def find(self, data: bytes) -> Head | None:
        """The head that `data` begins with, if it is known; `again` then tells whether its length is one."""
        end = data.find(b"\r\n\r\n", 0, LONGEST)
        if end < 0:
            return None
        at = data.find(_LENGTH_LINE, 0, end)
        if at < 0:
            at = data.find(b"\r\nContent-Length:", 0, end)
            if at < 0:
                return None
        digits_end = data.find(b"\r", at + 2)
        begin = data.rfind(b" ", at, digits_end) + 1
        return self._kept.get((data[:begin], data[digits_end : end + 4]))

    def keep(self, head: Head) -> None:
        """Another one that may be known again."""
        if head.before and len(head.before) + len(head.after) < LONGEST:
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[head.before, head.after] = head


class Target:
    """What is asked for, from the bytes of a request's first line. Raises `httptools.HttpParserInvalidURLError`."""

    __slots__ = ("path", "query", "raw_path", "url")

    def __init__(self, url: bytes) -> None:
        parsed: Any = httptools.parse_url(url)
        self.url = url
        self.raw_path: bytes = parsed.path or b"/"
        path = self.raw_path.decode("ascii")
        self.path = unquote(path) if "%" in path else path
        self.query: bytes = parsed.query or b""


class Head:
    """What a head says. It may be that of many requests: nobody changes it. `reading` is for whoever looks through
    heads to remember what they found in this one; what follows from the length isn't to be kept there."""

    __slots__ = ("after", "before", "headers", "keep_alive", "method", "names", "reading", "target", "version")

    def __init__(
        self,
        method: str,
        target: Target,
        version: str,
        headers: RawHeaders,
        keep_alive: bool,
        names: Named | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.names = named(headers) if names is None else names
        self.keep_alive = keep_alive
        self.reading: object = None
        self.before = b""  # its bytes until the length's digits, if it may be known again, and those behind them
        self.after = b""

    def keep(self, raw: bytes) -> None:
        """These are its bytes: know it again by them, if that is possible."""
        lines = raw.count(b"\r\n")
        if lines != len(self.headers) + 2 or raw.count(b"\n") != lines:  # a folded header, an empty line before
            return
        if not self.keep_alive or not _UNLIKE_OTHERS.isdisjoint(self.names):
            return
        lowered = raw.lower()
        at = lowered.find(_LENGTH_LINE)
        if at < 0 or lowered.find(_LENGTH_LINE, at + 1) >= 0:
            return
        end = raw.find(b"\r", at + 2)
        digits = self.names[_LENGTH]
        start = end - len(digits)
        if raw[start:end] == digits and len(digits) <= DIGITS:
            self.before, self.after = raw[:start], raw[end:]

    def again(self, data: bytes) -> int:
        """How many bytes of `data` are this head once more, whatever the length it tells; 0: it is another one."""
        if not self.before or not data.startswith(self.before):
            return 0
        start = len(self.before)
        end = data.find(b"\r", start, start + DIGITS + 1)
        if end <= start or not data[start:end].isdigit() or not data.startswith(self.after, end):
            return 0
        return end + len(self.after)

    def repeated(self, data: bytes) -> Head:
        """The head that `data` begins with, of which `again` has told: itself, or the same with another length."""
        start = len(self.before)
        digits = data[start : data.find(b"\r", start)]
        if self.names[_LENGTH] == digits:
            return self
        headers = [(name, digits if name == _LENGTH else value) for name, value in self.headers]
        other = Head(self.method, self.target, self.version, headers, self.keep_alive, {**self.names, _LENGTH: digits})
        other.before, other.after, other.reading = self.before, self.after, self.reading
        return other

    @property
    def length(self) -> int:
        """Of the body, as told; 0 where nothing is."""
        return int(self.names.get(_LENGTH, b"0"))

    def scope(self) -> dict[str, Any]:
        """ASGI's members that are a head's."""
        target = self.target
        return {
            "http_version": self.version,
            "method": self.method,
            "path": target.path,
            "raw_path": target.raw_path,
            "query_string": target.query,
            "headers": self.headers,
        }
