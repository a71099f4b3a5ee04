"""One client request's own record: filled in on its way, read once at the end for the log line and the metrics.

A leaf. It holds no bodies and no keys.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter as clock  # uvloop's own clock counts whole milliseconds
from typing import Any

from proxy.dialects.base import Usage
from proxy.errors import ApiError
from proxy.headers import RawHeaders

__all__ = ["CLIENT_LEFT", "Call", "clock"]

CLIENT_LEFT = 499  # nginx's status for a client that closed the connection before its answer was complete


class Call:
    """Times are seconds of `clock`."""

    __slots__ = (
        "attempts",
        "backend",
        "begun",
        "bytes_out",
        "circles",
        "client",
        "code",
        "endpoint",
        "first_byte",
        "headers",
        "id",
        "message",
        "method",
        "model",
        "passing",
        "path",
        "started",
        "status",
        "stream",
        "usage",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, id: bytes, method: str, path: str, client: str, begun: float, headers: RawHeaders | None = None
    ) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.client = client
        self.begun = begun
        self.headers: RawHeaders = headers if headers is not None else []  # sent with every answer: the id, CORS
        self.passing = b""  # the client's header lines that go along to an engine
        self.circles = False  # it was this gateway that sent it
        self.endpoint = ""
        self.model = ""  # the public name, once it is known to exist
        self.backend = ""
        self.attempts = 0
        self.stream = False
        self.status = 0  # sent to the client; 499 when it left
        self.started = False  # the head is out: from here on an error travels inside the stream
        self.waiting: Callable[[], str] | None = None  # what it waits for, where that isn't simply the engine's answer
        self.first_byte: float | None = None  # when the first of the answer itself went out; a comment doesn't count
        self.bytes_out = 0
        self.usage: Usage | None = None
        self.code: str | None = None  # of the error, if any
        self.message: str | None = None

    def failed(self, exc: ApiError) -> None:
        self.code = exc.code or exc.type
        self.message = exc.message

    def line(self, now: float) -> dict[str, Any]:
        """The access line's members; those without a value are left out."""
        line: dict[str, Any] = {
            "id": self.id.decode(),
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": _ms(now - self.begun),
            "client": self.client,
        }
        if self.first_byte is not None:
            line["first_byte_ms"] = _ms(self.first_byte - self.begun)
        if self.endpoint:
            line["endpoint"] = self.endpoint
        if self.model:
            line["model"] = self.model
        if self.backend:
            line["backend"] = self.backend
        if self.bytes_out:
            line["bytes_out"] = self.bytes_out
        if self.code:
            line["code"] = self.code
        if self.stream:
            line["stream"] = True
        if self.attempts > 1:
            line["attempts"] = self.attempts
        if self.usage is not None:
            line["prompt_tokens"] = self.usage.prompt
            line["completion_tokens"] = self.usage.completion
        if self.message is not None:
            line["error"] = self.message
        return line


def _ms(seconds: float) -> float:
    """Milliseconds with one decimal; `round` takes ten times as long."""
    return int(seconds * 10_000 + 0.5) / 10
