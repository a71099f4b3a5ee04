"""Streams of the Messages API, folded: blocks in their order, usage from both ends, and what is no whole stream."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.dialects.openai.gather_messages import gather_message
from proxy.errors import ApiError

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "m1", "type": "message", "role": "assistant", "content": [], "model": "up", "stop_reason": None,
        "stop_sequence": None, "usage": {"cache_read_input_tokens": 21, "input_tokens": 1, "output_tokens": 0},
    },
}  # fmt: skip
STOP: dict[str, Any] = {"type": "message_stop"}


def block(index: int, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": members}


def delta(index: int, kind: str, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **members}}


def end(reason: str, tokens: int, sequence: str | None = None) -> dict[str, Any]:
    told = {"stop_reason": reason, "stop_sequence": sequence}
    return {"type": "message_delta", "delta": told, "usage": {"output_tokens": tokens}}


def test_thinking_text_and_a_tool_call() -> None:
    events = [
        START,
        {"type": "ping"},
        block(0, type="thinking", thinking=""),
        delta(0, "thinking_delta", thinking="hm"),
        delta(0, "thinking_delta", thinking="m"),
        delta(0, "signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        block(1, type="text", text=""),
        delta(1, "text_delta", text="On"),
        delta(1, "text_delta", text="ce"),
        block(2, type="tool_use", id="t", name="f"),
        delta(2, "input_json_delta", partial_json='{"city": "Be'),
        delta(2, "input_json_delta", partial_json='rn"}'),
        end("tool_use", 9),
        STOP,
    ]
    assert gather_message(events) == START["message"] | {
        "content": [
            {"type": "thinking", "thinking": "hmm", "signature": "s"},
            {"type": "text", "text": "Once"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"city": "Bern"}},
        ],
        "stop_reason": "tool_use",
        "usage": {"cache_read_input_tokens": 21, "input_tokens": 1, "output_tokens": 9},
    }


def test_the_stop_sequence_that_was_met() -> None:
    whole = gather_message([START, block(0, type="text", text=""), end("stop_sequence", 2, " two"), STOP])
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", " two")
    assert whole["content"] == [{"type": "text", "text": ""}]


@pytest.mark.parametrize("pieces", [[], ["{"], ['{"city": "Be']])
def test_a_tool_call_cut_within_its_arguments_has_none(pieces: list[str]) -> None:
    deltas = [delta(0, "input_json_delta", partial_json=piece) for piece in pieces]
    whole = gather_message([START, block(0, type="tool_use", id="t", name="f"), *deltas, end("max_tokens", 3), STOP])
    assert whole["content"] == [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([], "upstream_incomplete"),
        ([START, block(0, type="text", text=""), delta(0, "text_delta", text="On")], "upstream_incomplete"),
        ([START, delta(0, "text_delta", text="On"), STOP], "upstream_invalid_response"),
        ([START, {"type": "content_block_delta", "index": 0}, STOP], "upstream_invalid_response"),
        ([{"type": "message_start"}], "upstream_invalid_response"),
    ],
)
def test_no_whole_stream(events: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(ApiError) as refused:
        gather_message(events)
    assert refused.value.code == code


def test_the_events_are_left_as_they_were() -> None:
    events = [START, block(0, type="text", text=""), delta(0, "text_delta", text="a"), end("end_turn", 1), STOP]
    assert gather_message(events) == gather_message(events)
    assert START["message"]["stop_reason"] is None
