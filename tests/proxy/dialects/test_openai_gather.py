"""A gathered stream is the plain answer.

`llama_server_pairs.json` holds answers of a real llama-server, each request asked both ways. They are equal in every
member but `id`, `created`, the ids of tool calls and the durations in `timings`. The one exception is kept as a case of
its own: chat logprobs lack the tokens that bring no text (here the end token), as a stream has no chunk for them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.dialects.openai.gather import ChatGather, CompletionGather, gather_chat, gather_completion
from proxy.errors import ApiError, error

PAIRS = json.loads((Path(__file__).parent / "llama_server_pairs.json").read_text("utf-8"))["cases"]
GATHER = {"chat": gather_chat, "completions": gather_completion}
LOSES_END_TOKEN = "chat_logprobs_with_end_token"


def comparable(value: Any, member: str = "") -> Any:
    if isinstance(value, dict):
        return {
            key: comparable(part, key)
            for key, part in value.items()
            if not key.endswith(("_ms", "_per_second")) and key != "created" and (key != "id" or isinstance(part, int))
        }
    if isinstance(value, list):
        return [comparable(part) for part in value]
    return value


def failure(event: dict) -> ApiError:
    return error("backend_overloaded", json.dumps(event))


def chunk(*choices: dict, **members: Any) -> dict:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": list(choices),
        **members,
    }


def delta(index: int = 0, finish: str | None = None, **members: Any) -> dict:
    return {"index": index, "delta": members, "finish_reason": finish}


@pytest.mark.parametrize("case", [c for c in PAIRS if c["name"] != LOSES_END_TOKEN], ids=lambda case: case["name"])
def test_gathered_equals_plain(case: dict) -> None:
    gathered = GATHER[case["endpoint"]](case["events"], failure)

    assert comparable(gathered) == comparable(case["plain"])
    assert gathered.keys() == case["plain"].keys()
    assert gathered["id"] == next(event["id"] for event in case["events"] if event)


def test_chat_logprobs_lose_tokens_without_text() -> None:
    case = next(c for c in PAIRS if c["name"] == LOSES_END_TOKEN)
    plain = comparable(case["plain"])
    del plain["choices"][0]["logprobs"]["content"][-1]

    assert comparable(gather_chat(case["events"], failure)) == plain


def test_tool_call_ids_and_arguments() -> None:
    call = {"name": "f", "arguments": ""}
    events = [
        chunk(delta(role="assistant", content=None)),
        chunk(delta(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": dict(call)}])),
        chunk(delta(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": dict(call)}])),
        chunk(delta(tool_calls=[{"index": 1, "function": {"name": None, "arguments": '{"x'}}])),
        chunk(delta(tool_calls=[{"index": 0, "id": "", "function": {"name": "", "arguments": "{}"}}])),
        chunk(delta(tool_calls=[{"index": 1, "function": {"arguments": '":1}'}}])),
        chunk(delta(finish="tool_calls")),
    ]

    message = gather_chat(events, failure)["choices"][0]["message"]

    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        ],
    }


def test_tool_calls_without_index_are_told_apart_by_id() -> None:
    events = [
        chunk(delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{"}}])),
        chunk(delta(tool_calls=[{"function": {"arguments": "}"}}])),
        chunk(delta(tool_calls=[{"id": "b", "function": {"name": "g", "arguments": "{}"}}])),
        chunk(delta(finish="tool_calls")),
    ]

    calls = gather_chat(events, failure)["choices"][0]["message"]["tool_calls"]

    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("a", "f", "{}"),
        ("b", "g", "{}"),
    ]


def test_members_that_stay_null_and_those_that_never_come() -> None:
    events = [
        chunk({**delta(role="assistant", content="", reasoning_content=None, refusal=None), "logprobs": None}),
        chunk({**delta(content="a"), "stop_reason": None, "token_ids": [1]}, system_fingerprint=None),
        chunk({**delta(content="b", finish="stop"), "stop_reason": 7, "token_ids": [2]}),
    ]

    gathered = gather_chat(events, failure)

    assert gathered["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ab", "reasoning_content": None, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": 7,
            "token_ids": [1, 2],
        }
    ]
    assert gathered["system_fingerprint"] is None
    assert "usage" not in gathered


def test_legacy_logprobs_arrays_are_concatenated() -> None:
    def piece(text: str, offset: int, finish: str | None = None) -> dict:
        arrays = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}], "text_offset": [offset]}
        return chunk({"index": 0, "text": text, "logprobs": arrays, "finish_reason": finish})

    choice = gather_completion([piece("a", 0), piece("b", 1), piece("", 2, "stop")], failure)["choices"][0]

    assert choice["text"] == "ab"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", ""],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}, {"": -0.5}],
        "text_offset": [0, 1, 2],
    }


def test_the_first_choice_speaks_for_the_answer() -> None:
    """As llama-server's own plain answers do; its streams bring usage and timings for each choice."""
    events = [
        chunk(delta(1, "stop", content="b")),
        chunk(usage={"completion_tokens": 2}, timings={"n": 2}),
        chunk(delta(0, "stop", content="a"), timings={"n": 0}),
        chunk(usage={"completion_tokens": 1}, timings={"n": 1}),
        chunk(delta(2, "stop", content="c"), timings={"n": 3}),
        chunk(usage={"completion_tokens": 3}),
    ]

    gathered = gather_chat(events, failure)

    assert [choice["message"]["content"] for choice in gathered["choices"]] == ["a", "b", "c"]
    assert gathered["usage"] == {"completion_tokens": 1}
    assert gathered["timings"] == {"n": 1}


def test_a_closing_usage_wins_over_running_ones() -> None:
    events = [
        chunk(delta(0, "stop"), usage={"completion_tokens": 1}),
        chunk(delta(1, "stop"), usage={"completion_tokens": 1}),
        chunk(usage={"completion_tokens": 2}),
    ]

    assert gather_chat(events, failure)["usage"] == {"completion_tokens": 2}


@pytest.mark.parametrize("event", [{"error": {"code": 500, "message": "boom"}}, {"object": "error", "message": "boom"}])
def test_an_error_event_raises(event: dict) -> None:
    with pytest.raises(ApiError) as given:
        gather_chat([chunk(delta(content="a")), event], failure)
    with pytest.raises(ApiError) as default:
        gather_completion([event])

    assert (given.value.code, json.loads(given.value.message)) == ("backend_overloaded", event)
    assert (default.value.code, default.value.message) == ("upstream_error", "boom")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [None],
        [chunk(delta(content="a"))],
        [chunk(delta(0, "stop")), chunk(delta(1, content="b"))],
        [chunk(delta(0, "")), chunk(usage={})],
    ],
)
def test_a_choice_without_finish_reason_is_incomplete(events: list) -> None:
    with pytest.raises(ApiError) as caught:
        gather_chat(events, failure)

    assert caught.value.code == "upstream_incomplete"


@pytest.mark.parametrize("choices", [["x"], [{"index": [], "delta": {}}], [{"index": 0, "delta": "x"}], 5])
def test_malformed_chunks(choices: Any) -> None:
    with pytest.raises(ApiError) as caught:
        ChatGather(failure).add({"choices": choices})

    assert caught.value.code == "upstream_invalid_response"


def test_events_are_added_one_by_one() -> None:
    gather = CompletionGather(failure)
    for text in "abc":
        gather.add({"id": "c", "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]})
    gather.add({"id": "c", "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]})

    assert gather.result() == {
        "id": "c",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}],
    }
