"""What a client's stream looks like at its end: errors inside it, its end marker, comments. A leaf, pure functions.

Chat and completions end with `data: [DONE]`, also after an error, so that no client waits on. The Responses and
Messages APIs know an `error` event of their own; it carries OpenAI's object as well.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.dialects.base import Endpoint
from proxy.errors import ApiError
from proxy.wire import dump

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"

_SEQUENCE: Final = re.compile(rb'"sequence_number":\s*(\d+)')


def error_events(endpoint: Endpoint, exc: ApiError, last: bytes = b"") -> bytes:
    """That error as the last events of a stream; `last`: what went out before, for the event's running number."""
    if endpoint == "messages":
        return _named_error({"type": "error", **exc.envelope()})
    if endpoint == "responses":
        numbers = _SEQUENCE.findall(last)
        number = int(numbers[-1]) + 1 if numbers else 0
        told = {"type": "error", "code": exc.code, "message": exc.message, "param": exc.param}
        return _named_error({**told, "sequence_number": number, **exc.envelope()})
    return b"data: " + dump(exc.envelope()) + b"\n\n" + DONE


def comment(text: str) -> bytes:
    """That text as a comment, on one line whatever is in it."""
    return b": %b\n\n" % " ".join(text.split()).encode("utf-8", "replace")


def _named_error(body: dict[str, object]) -> bytes:
    return b"event: error\ndata: " + dump(body) + b"\n\n"
