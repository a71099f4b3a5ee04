"""How a stream of each API ends when it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.base import Endpoint
from proxy.errors import error
from proxy.events import DONE, KEEP_ALIVE, comment, error_events
from proxy.framing import Event, SseParser

FAILURE = error("backend_overloaded", "Too much. — Wait.", param="n")
ENVELOPE = {
    "message": "Too much. — Wait.", "type": "server_error", "param": "n", "code": "backend_overloaded",
}  # fmt: skip


def told(endpoint: Endpoint, last: bytes = b"") -> tuple[list[Event], Any]:
    events = SseParser().feed(error_events(endpoint, FAILURE, last))
    assert events[0].data is not None
    return events, json.loads(events[0].data)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_chat_and_completions_end_with_done(endpoint: Endpoint) -> None:
    events, body = told(endpoint)

    assert body == {"error": ENVELOPE}
    assert [event.data for event in events[1:]] == ["[DONE]"]
    assert error_events(endpoint, FAILURE).endswith(DONE)


def test_messages() -> None:
    events, body = told("messages")

    assert (len(events), events[0].event) == (1, "error")
    assert body == {"type": "error", "error": ENVELOPE}


@pytest.mark.parametrize(
    ("last", "number"),
    [
        (b"", 0),
        (b'data: {"sequence_number":4}\n\n', 5),
        (b'data: {"sequence_number": 4}\n\ndata: {"sequence_number":  11}\n\n', 12),
        (b'data: {"delta":"\\"sequence_number\\":9","sequence_number":4}\n\n', 5),
    ],
)
def test_responses_go_on_counting(last: bytes, number: int) -> None:
    events, body = told("responses", last)

    assert (len(events), events[0].event) == (1, "error")
    assert body == {"type": "error", "error": ENVELOPE, "sequence_number": number} | {
        name: ENVELOPE[name] for name in ("code", "message", "param")
    }


def test_a_comment_is_no_event() -> None:
    assert SseParser().feed(KEEP_ALIVE + b"data: x\n\n") == [Event(None, "x")]


def test_a_comment_is_one_line_whatever_is_in_it() -> None:
    text = "loading\r\n\ndata: {}\n\u2028größer\x0b\ud800"

    assert comment(text) == ": loading data: {} größer ?\n\n".encode()
    assert SseParser().feed(comment(text) + b"data: x\n\n") == [Event(None, "x")]
