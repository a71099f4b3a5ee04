"""One client request's own record: filled in on its way, read once at the end for the log line and the metrics.

A leaf. It holds no bodies and no keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter as clock  # uvloop's own clock counts whole milliseconds
from typing import Any

from proxy.dialects.base import Usage
from proxy.errors import ApiError
from proxy.headers import RawHeaders

__all__ = ["CLIENT_LEFT", "Call", "clock"]

CLIENT_LEFT = 499  # nginx's status for a client that closed the connection before its answer was complete


@dataclass(slots=True)
class Call:
    """Times are seconds of `clock`."""

    id: bytes
    method: str
    path: str
    client: str
    begun: float
    headers: RawHeaders = field(default_factory=list)  # sent with every answer: the id, CORS
    endpoint: str = ""
    model: str = ""  # the public name, once it is known to exist
    backend: str = ""
    attempts: int = 0
    stream: bool = False
    status: int = 0  # sent to the client; 499 when it left
    started: bool = False  # the head is out: from here on an error travels inside the stream
    waiting: Callable[[], str] | None = None  # tells what it waits for, where that isn't simply the engine's answer
    first_byte: float | None = None  # when the first of the answer itself went out; a comment doesn't count
    bytes_out: int = 0
    usage: Usage | None = None
    code: str | None = None  # of the error, if any
    message: str | None = None

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
            "ms": round((now - self.begun) * 1000, 1),
            "client": self.client,
        }
        if self.first_byte is not None:
            line["first_byte_ms"] = round((self.first_byte - self.begun) * 1000, 1)
        for name in ("endpoint", "model", "backend", "bytes_out", "code"):
            if value := getattr(self, name):
                line[name] = value
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
