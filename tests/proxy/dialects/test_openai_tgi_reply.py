"""Answers of TGI's own /v1, whole and streamed: what its fixes make of them, and what breaks them off."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from proxy.errors import ApiError
from tests.proxy.dialects.tgi_support import (
    HEAD,
    TOOL,
    chat,
    check_chunks,
    check_schema,
    check_whole_chat,
    chunk,
    deltas,
    fixer,
    piece,
    piece_whole,
    run,
    usage,
)
from tests.vectors_support import match


def whole_chat(message: dict[str, Any], reason: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": reason} | more
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage(5, 4)}


def test_whole_tool_call() -> None:
    calls = [
        {"id": "0", "type": "function", "function": {"description": None, "name": "f", "arguments": {"a": "é"}}},
        {"id": "call_x", "type": "function", "function": {"description": "d", "name": "g", "arguments": "{}"}},
    ]
    out = fixer("chat", chat(tools=[TOOL])).whole(whole_chat({"tool_calls": calls}))
    match(
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": "<<CALL>>", "type": "function", "function": {"name": "f", "arguments": '{"a":"é"}'}},
                {
                    "id": "call_x",
                    "type": "function",
                    "function": {"description": "d", "name": "g", "arguments": "{}"},
                },
            ],
        },
        out["choices"][0]["message"],
    )
    assert out["choices"][0]["finish_reason"] == "tool_calls"
    check_whole_chat(out)


def test_whole_list_is_sorted_and_echoed() -> None:
    body = piece_whole("red", "eos_token")
    body["choices"] += [{"index": 1, "text": "blue.x", "logprobs": None, "finish_reason": "length"}]
    body["choices"].reverse()
    out = fixer("completions", {"prompt": ["A:", "B:"], "echo": True, "stop": "."}).whole(body)
    assert [(c["index"], c["text"], c["finish_reason"]) for c in out["choices"]] == [
        (0, "A:red", "stop"),
        (1, "B:blue", "stop"),
    ]
    assert out["usage"] == usage(2, 3)
    assert out["model"] == "pub-m"
    Completion.model_validate(out, strict=True)
    check_schema("CreateCompletionResponse", out)


def test_an_id_that_tgi_gave_is_kept() -> None:
    body = whole_chat({"content": "x"}) | {"id": "chatcmpl-its-own"}
    assert fixer("chat", chat()).whole(body)["id"] == "chatcmpl-its-own"


def entry(token: str, logprob: Any, **others: Any) -> dict[str, Any]:
    tops = [{"token": name, "logprob": value} for name, value in others.items()]
    return {"token": token, "logprob": logprob, "top_logprobs": tops}


def test_whole_logprobs() -> None:
    content = [entry("H", -0.05, x=-3, H=-0.05), entry("é", None, e=-1, x=-2), entry("</s>", -0.3)]
    body = whole_chat({"content": "Hé"}, logprobs={"content": content})
    asked = chat(logprobs=True, top_logprobs=1)
    out = fixer("chat", asked).whole(body)
    assert out["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "H",
                "logprob": -0.05,
                "bytes": [72],
                "top_logprobs": [{"token": "H", "logprob": -0.05, "bytes": [72]}],
            },
            {
                "token": "é",
                "logprob": -9999.0,
                "bytes": [195, 169],
                "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}],
            },
        ],
        "refusal": None,
    }
    check_whole_chat(out)
    cut = fixer("chat", asked | {"stop": "é"}).whole(body)["choices"][0]
    assert cut["message"]["content"] == "H"
    assert [one["token"] for one in cut["logprobs"]["content"]] == ["H"]
    by_length = whole_chat({"content": "Hé"}, "length", logprobs={"content": content[:2]})
    assert len(fixer("chat", asked).whole(by_length)["choices"][0]["logprobs"]["content"]) == 2
    assert fixer("chat", chat()).whole(body)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "upstream_invalid_response"),
        ({"choices": [5]}, "upstream_invalid_response"),
        ({"choices": [{"message": None}]}, "upstream_invalid_response"),
        ({"error": "Model is overloaded", "error_type": "overloaded"}, "rate_limit_exceeded"),
    ],
)
def test_whole_nonsense(body: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as caught:
        fixer("chat", chat()).whole(body)
    assert caught.value.code == code


def test_stop_string_that_tgi_leaves_in() -> None:
    request = chat(stream=True, stop=["there"])
    events = [chunk({"content": "Hello"}), chunk({"content": " there"}, "stop_sequence")]
    fix = fixer("chat", request)
    assert deltas(run(fix, events)) == [({"role": "assistant", "content": "Hello"}, None), ({"content": " "}, "stop")]
    assert fix.stopped is False  # TGI has ended too: its usage and [DONE] are still to come


def test_stop_string_that_tgi_does_not_notice() -> None:
    request = chat(stream=True, stop=["END"], stream_options={"include_usage": True})
    fix = fixer("chat", request)
    events = [chunk({"content": "xE"}), chunk({"content": "N"}), chunk({"content": "D y"}), chunk({"content": "z"})]
    out = run(fix, events)
    assert fix.stopped
    assert deltas(out[:-1]) == [({"role": "assistant", "content": "x"}, None), ({}, "stop")]
    assert out[-1]["choices"] == []
    assert out[-1]["usage"] == usage(0, 3)
    assert all(one["usage"] is None for one in out[:-1])
    check_chunks("chat", out)


def test_held_text_comes_out_at_the_end() -> None:
    fix = fixer("chat", chat(stream=True, stop=["END"]))
    events = [chunk({"content": "E"}), chunk({"content": "N"}), chunk({"content": ""}, "stop")]
    assert deltas(run(fix, events)) == [({"role": "assistant", "content": "EN"}, "stop")]


def test_token_limit_that_tgi_overruns() -> None:
    request = chat(stream=True, max_completion_tokens=3, stream_options={"include_usage": True})
    fix = fixer("chat", request)
    out = run(fix, [chunk({"content": letter}) for letter in "abcdef"])
    assert fix.stopped
    assert deltas(out[:-1])[1:] == [({"content": "b"}, None), ({"content": "c"}, "length")]
    assert out[-1]["usage"] == usage(0, 3)
    kept = fixer("chat", request)
    exact = run(kept, [chunk({"content": "a"}), chunk({"content": "b"}), chunk({"content": "c"}, "length")])
    assert deltas(exact[:-1]) == deltas(out[:-1])
    assert kept.stopped is False


def test_empty_answer_and_half_characters() -> None:
    out = run(fixer("chat", chat(stream=True)), [chunk({"content": ""}, "stop")])
    assert deltas(out) == [({"role": "assistant", "content": ""}, "stop")]
    events = [chunk({"content": ""}), chunk({"content": "é"}), chunk({"content": ""}), chunk({"content": ""}, "stop")]
    out = run(fixer("chat", chat(stream=True)), events)
    assert deltas(out) == [({"role": "assistant", "content": "é"}, None), ({}, "stop")]
    assert all("usage" not in one for one in out)


def tool_piece(name: str | None, arguments: Any, reason: str | None = None, call_id: str = "8") -> dict[str, Any]:
    call = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [call]}, reason)


def test_tool_call_cut_by_the_limit() -> None:
    events = [tool_piece("f", "{"), tool_piece(None, '"ar', "length")]
    out = run(fixer("chat", chat(stream=True, tools=[TOOL])), events)
    assert deltas(out)[1] == ({"tool_calls": [{"index": 0, "function": {"arguments": '"ar'}}]}, "length")
    check_chunks("chat", out)


def test_tool_call_with_a_proper_id_and_finish() -> None:
    events = [tool_piece("f", "{}", call_id="791c5f30-4d52"), tool_piece(None, "", "stop", "791c5f30-4d52")]
    out = run(fixer("chat", chat(stream=True, tools=[TOOL])), events)
    assert out[0]["choices"][0]["delta"]["tool_calls"][0]["id"] == "791c5f30-4d52"
    assert deltas(out)[1:] == [({}, "tool_calls")]


def test_ends_too_early() -> None:
    request = chat(stream=True, tools=[TOOL])
    for events, how in (
        ([], {}),
        ([chunk({"content": "a"})], {}),
        ([tool_piece("f", "{")], {"marked": False}),
    ):
        with pytest.raises(ApiError) as caught:
            run(fixer("chat", request), events, **how)
        assert caught.value.code == "upstream_incomplete"
        assert "'old'" in caught.value.message
    with pytest.raises(ApiError, match="max_tokens"):
        fixer("chat", request).end()
    assert run(fixer("chat", request), [chunk({"content": "a"}, "length")], marked=False)


def test_streamed_logprobs_go_with_their_text() -> None:
    def event(text: str, token: str, reason: str | None = None) -> dict[str, Any]:
        return chunk({"content": text}, reason, logprobs={"content": [entry(token, -0.5, **{token: -0.5})]})

    def tokens(out: list[dict[str, Any]]) -> list[Any]:
        logprobs = [one["choices"][0]["logprobs"] for one in out]
        return [[one["token"] for one in each["content"]] if each else None for each in logprobs]

    request = chat(stream=True, logprobs=True, top_logprobs=1, stop=["ND"])
    events = [event("a", "a"), event("N", "N"), event("o", "o"), event("", "\ufffd"), event("", "</s>", "stop")]
    out = run(fixer("chat", request), events)
    assert deltas(out)[:3] == [
        ({"role": "assistant", "content": "a"}, None),
        ({"content": "No"}, None),
        ({"content": ""}, None),
    ]
    assert tokens(out) == [["a"], ["N", "o"], ["\ufffd"], None]
    check_chunks("chat", out)
    cut = run(fixer("chat", request), [event("a", "a"), event("bN", "bN"), event("D", "D")])
    assert tokens(cut) == [["a"], ["bN"], None]
    assert deltas(cut)[-1] == ({}, "stop")


def test_completions_with_several_prompts() -> None:
    request = {
        "prompt": ["one", "two"],
        "stream": True,
        "echo": True,
        "stop": "!",
        "stream_options": {"include_usage": True},
    }
    events = [
        piece("a", index=1),
        piece("b!c", index=0),
        piece("d", index=0),
        piece("</s>", "eos_token", index=1, usage=usage(4, 2)),
    ]
    fix = fixer("completions", request)
    out = run(fix, events)
    seen = [(c["choices"][0]["index"], c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in out[:-1]]
    assert seen == [(1, "two", None), (1, "a", None), (0, "one", None), (0, "b", "stop"), (1, "", "stop")]
    assert fix.stopped  # TGI still writes the first one
    assert out[-1]["usage"] == usage(4, 3)
    both = run(
        fixer("completions", {"prompt": ["x", "y"]} | {"stream": True}),
        [piece("a", "length", 0), piece("b", "length", 1)],
    )
    assert deltas(both) == [("a", "length"), ("b", "length")]
    with pytest.raises(ApiError):
        run(fixer("completions", {"prompt": ["x", "y"]}), [piece("a", "length", 0)])


def test_usage_of_completions_is_summed() -> None:
    request = {"prompt": ["x", "y"], "stream": True, "stream_options": {"include_usage": True}}
    events = [piece("a", "length", 0, usage(20, 2)), piece("b", "length", 1, usage(21, 3))]
    fix = fixer("completions", request)
    out = run(fix, events)
    assert fix.stopped is False
    assert out[-1]["usage"] == usage(41, 5)
    assert [one["usage"] for one in out[:-1]] == [None, None]


def test_nothing_of_the_upstreams_is_changed_in_place() -> None:
    event = tool_piece("f", "{}")
    before = copy.deepcopy(event)
    fix = fixer("chat", chat(stream=True, tools=[TOOL]))
    fix.event(event)
    assert event == before
    body = whole_chat({"tool_calls": [{"id": "0", "function": {"name": "f", "arguments": {}, "description": None}}]})
    before = copy.deepcopy(body)
    fix.whole(body)
    assert body == before


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text("ab", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "index",
                    "tool_calls",
                    "function",
                    "arguments",
                    "usage",
                    "text",
                    "logprobs",
                    "finish_reason",
                    "message",
                    "token",
                    "top_logprobs",
                    "prompt_tokens",
                    "id",
                    "error",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.sampled_from(["chat", "completions"]), st.lists(st.dictionaries(st.just("choices"), JSON_VALUES), max_size=3))
def test_nonsense_is_told_as_such(endpoint: Any, events: list[dict[str, Any]]) -> None:
    request = chat(prompt="p", stream=True, logprobs=True, stream_options={"include_usage": True}, stop="b")
    for body in events:
        with contextlib.suppress(ApiError):  # and nothing else
            fixer(endpoint, request).whole(body)
    with contextlib.suppress(ApiError):
        run(fixer(endpoint, request), events)
