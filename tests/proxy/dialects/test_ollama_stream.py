"""Ollama's answers, whole and streamed: what the contract's cases leave open."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Usage
from proxy.dialects.ollama.answer import created
from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import (
    NOW,
    TOOL,
    answered,
    chat,
    check_schema,
    deltas,
    encode,
    events,
    line,
    ndjson,
    pump,
    stream,
    target,
    whole,
)

ROLE = {"role": "assistant", "content": ""}


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "index": 0, "arguments": {"é": [1, None]}}} | more


def test_calls_are_counted_over_the_whole_stream() -> None:
    lines = [
        line(message={"tool_calls": [call("f", id="call_a"), call("g", id="")]}),
        line(message={"tool_calls": [call("h")]}),
        line(done=True, done_reason="stop"),
    ]
    chunks = stream(lines, tools=[TOOL])
    calls = [one for chunk in chunks[1:3] for one in chunk["choices"][0]["delta"]["tool_calls"]]
    assert [one["index"] for one in calls] == [0, 1, 2]
    assert calls[0] == {
        "index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"é":[1,null]}'},
    }  # fmt: skip
    assert len({one["id"] for one in calls}) == 3
    assert deltas(chunks)[-2:] == ["tool_calls", "[DONE]"]


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("passthrough", ["reasoning_content"]),
        ("reasoning", ["reasoning"]),
        ("both", ["reasoning", "reasoning_content"]),
    ],
)
def test_thinking_has_the_configured_name(field: Any, names: list[str]) -> None:
    to = target(reasoning_field=field)
    lines = [line(message={"thinking": "hm"}), line("yes", done=True)]
    assert deltas(stream(lines, to=to)) == [ROLE, dict.fromkeys(names, "hm"), {"content": "yes"}, "stop", "[DONE]"]
    message = whole(encode("chat", chat(), to), line("yes", done=True, message={"thinking": "hm"}))["choices"][0]
    assert message["message"] == {"role": "assistant", "content": "yes", "refusal": None} | dict.fromkeys(names, "hm")


# -- the guard against repetition ----------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "ends"), [(29, "upstream_incomplete"), (30, "length"), (31, "length")])
def test_the_last_thirty_texts_must_be_equal(times: int, ends: str) -> None:
    lines = [line("other"), *[line(text) for text in (["ha", " ha\n"] * 16)[:times]]]
    assert deltas(stream(lines))[-2:] == [ends, "[DONE]"]


def test_guard_usage_counts_texts() -> None:
    lines = [line("x"), *[line(message={"thinking": "ha"})] * 31]
    chunks = stream(lines, stream_options={"include_usage": True})
    assert chunks[-2]["usage"] == {"prompt_tokens": 0, "completion_tokens": 32, "total_tokens": 32}


def test_guard_in_completions() -> None:
    lines = [{"response": "ha", "done": False, "created_at": "2026-03-01T12:00:00Z"}] * 31
    assert deltas(stream(lines, "completions"))[-2:] == ["length", "[DONE]"]


def test_a_lost_connection_is_no_guard() -> None:
    """`flush` isn't called then; what came is all that went out."""
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    assert deltas(events(pump(decoder, [ndjson([line("ha")] * 31)], proper=False)))[-1] == {"content": "ha"}
    assert not decoder.done


def test_whole_reply_of_the_guard_with_calls() -> None:
    body = line("", message={"tool_calls": [call("f")]})
    assert whole(encode("chat", chat(tools=[TOOL])), body)["choices"][0]["finish_reason"] == "tool_calls"


# -- logprobs ------------------------------------------------------------------------------------------------

TOKEN = {"token": "é", "logprob": None, "top_logprobs": [{"token": "a", "logprob": -2}, {"token": "b", "logprob": -1}]}
ENTRY = {
    "token": "é", "logprob": -9999.0, "bytes": [195, 169],
    "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"content": "é", "thinking": "hm", "tool_calls": [call("f")]}, "content"),
        ({"thinking": "hm", "tool_calls": [call("f")]}, "tool_calls"),
        ({"thinking": "hm"}, "reasoning_content"),
        ({}, "content"),
    ],
)
def test_logprobs_travel_on_one_chunk(message: dict[str, Any], where: str) -> None:
    lines = [line(message=message, logprobs=[TOKEN]), line(done=True)]
    chunks = stream(lines, logprobs=True, top_logprobs=1)
    carriers = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["logprobs"]]
    assert [one["logprobs"] for one in carriers] == [{"content": [ENTRY], "refusal": None}]
    assert where in carriers[0]["delta"]
    for chunk in chunks[:-1]:
        check_schema("CreateChatCompletionStreamResponse", chunk)


def test_logprobs_only_where_asked_for_and_delivered() -> None:
    lines = [line("é", logprobs=[TOKEN]), line(done=True)]
    assert all(c["choices"][0]["logprobs"] is None for c in stream(lines)[:-1])
    old = whole(encode("chat", chat(logprobs=True)), line("x", done=True))
    assert old["choices"][0]["logprobs"] is None
    none = whole(encode("chat", chat(logprobs=True)), line("é", done=True, logprobs=[TOKEN]))
    assert none["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_legacy_logprobs() -> None:
    tokens = [TOKEN, {"token": "b", "logprob": -3, "top_logprobs": [{"token": "b", "logprob": -3}]}]
    body = {"response": "éb", "done": True, "logprobs": tokens}
    plan = encode("completions", {"prompt": "x", "logprobs": 1})
    expected = {
        "tokens": ["é", "b"],
        "token_logprobs": [-9999.0, -3.0],
        "top_logprobs": [{"b": -1.0, "é": -9999.0}, {"b": -3.0}],
        "text_offset": [0, 1],
    }
    reply = whole(plan, body)
    assert reply["choices"][0]["logprobs"] == expected
    check_schema("CreateCompletionResponse", reply)
    lines = [{"response": t["token"], "done": False, "logprobs": [t]} for t in tokens] + [
        {"response": "", "done": True}
    ]
    parts = [c["choices"][0]["logprobs"] for c in stream(lines, "completions", logprobs=1)[:2]]
    assert {name: parts[0][name] + parts[1][name] for name in expected} == expected
    bare = whole(encode("completions", {"prompt": "x", "logprobs": 0}), body)["choices"][0]["logprobs"]
    assert bare["top_logprobs"] == [{}, {}]


# -- odd answers ---------------------------------------------------------------------------------------------


def test_nothing_goes_out_before_the_first_line_is_understood() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    first, rest = ndjson([line("a")])[:40], ndjson([line("a")])[40:]
    assert decoder.feed(b"\n") == b""
    assert decoder.feed(first) == b""
    assert deltas(events(decoder.feed(rest))) == [ROLE, {"content": "a"}]


def test_an_error_line_first_has_nothing_before_it() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    with pytest.raises(ApiError) as caught:
        decoder.feed(ndjson([{"error": 'invalid format: "yaml"'}]))
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    assert decoder.take_pending() == b""


def test_what_came_before_an_error_is_kept_once() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    with pytest.raises(ApiError):
        decoder.feed(ndjson([line("a"), {"error": "boom"}, line("b")]))
    assert deltas(events(decoder.take_pending())) == [ROLE, {"content": "a"}]
    assert decoder.take_pending() == b""


@pytest.mark.parametrize("junk", [b"<html>\n", b"[1]\n", b'{"status":"pulling"}\n'])
def test_nonsense_is_an_error(junk: bytes) -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    assert deltas(events(pump(decoder, [ndjson([line("a")]), junk]))) == [
        ROLE, {"content": "a"}, "upstream_invalid_response", "[DONE]",
    ]  # fmt: skip


def test_an_endless_line_is_an_error() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    with pytest.raises(ApiError) as caught:
        decoder.feed(b"x" * (17 * 1024 * 1024))
    assert caught.value.code == "upstream_invalid_response"


def test_an_unterminated_last_line_counts() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    out = pump(decoder, [ndjson([line("a"), line("b", done=True)])[:-1]])
    assert deltas(events(out)) == [ROLE, {"content": "a"}, {"content": "b"}, "stop", "[DONE]"]


def test_nothing_after_the_end() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    out = pump(decoder, [ndjson([line("a", done=True), line("b")])])
    assert deltas(events(out)) == [ROLE, {"content": "a"}, "stop", "[DONE]"]
    assert decoder.feed(ndjson([line("c")])) == decoder.flush() == b""


def test_an_empty_body_is_incomplete() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    with pytest.raises(ApiError) as caught:
        decoder.flush()
    assert caught.value.code == "upstream_incomplete"


def test_one_object_where_a_stream_was_due() -> None:
    plan = encode("chat", chat(stream=True))
    reply = plan.decoder.reply([answered(line("a", done=True, prompt_eval_count=2, eval_count=1))])
    assert reply.content_type.startswith("text/event-stream")
    assert deltas(events(reply.body)) == [ROLE, {"content": "a"}, "stop", "[DONE]"]
    assert reply.usage == Usage(2, 1)


@pytest.mark.parametrize(
    ("body", "code"),
    [("<html>", "upstream_invalid_response"), ({"done": True}, "upstream_invalid_response"),
     ({"response": "x"}, None), ({"error": "boom"}, "upstream_error"), ({"error": {"message": "x"}}, "upstream_error")],
)  # fmt: skip
def test_whole_replies_that_are_none(body: Any, code: str | None) -> None:
    plan = encode("completions", {"prompt": "x"})
    if code is None:
        assert whole(plan, body)["choices"][0]["text"] == "x"
        return
    with pytest.raises(ApiError) as caught:
        plan.decoder.reply([answered(body)])
    assert caught.value.code == code


def test_thinking_has_no_place_in_a_completion() -> None:
    lines = [{"response": "", "thinking": "hm", "done": False}, {"response": "x", "thinking": "hm", "done": True}]
    assert deltas(stream(lines, "completions")) == ["x", "stop", "[DONE]"]
    assert whole(encode("completions", {"prompt": "x"}), lines[1])["choices"][0]["text"] == "x"


def test_created_falls_back_to_the_request() -> None:
    assert whole(encode("chat", chat()), {"message": {"content": "x"}, "done": True})["created"] == NOW
    assert stream([{"message": {"content": "x"}, "done": True}])[0]["created"] == NOW


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01.999999999Z", 1),
        ("2026-02-02T00:00:00-0130", 1769995800),
        ("1970-01-01t00:00:02z", 2),
        (None, None),
        (5, None),
        ("yesterday", None),
        ("2026-13-01T00:00:00Z", None),
    ],
)
def test_created(text: Any, seconds: int | None) -> None:
    assert created(text) == seconds


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LINE = st.builds(lambda content, thinking: line(content, message={"thinking": thinking}), TEXT, TEXT)


@given(st.lists(LINE, max_size=8), st.lists(st.integers(0, 2000), max_size=8))
def test_the_text_arrives_whole_however_it_is_cut(lines: list[Any], cuts: list[int]) -> None:
    body = ndjson([*lines, line("end", done=True)])
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    chunks = events(pump(decoder, [body[a:b] for a, b in pairwise(places)]))
    got = [c["choices"][0]["delta"] for c in chunks[:-1]]
    assert "".join(d.get("content", "") for d in got) == "".join(one["message"]["content"] for one in lines) + "end"
    assert "".join(d.get("reasoning_content", "") for d in got) == "".join(one["message"]["thinking"] for one in lines)
    assert all(list(d.values()) != [""] for d in got)
