"""TGI's native dialect: whole answers and streams, stop strings, limits, logprobs, forced calls, fan-out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Answered
from proxy.errors import ApiError
from tests.proxy.dialects.tgi_native_support import (
    TOOL,
    Walk,
    answered,
    chat,
    check_told,
    completion,
    decoded,
    encode,
    events,
    generation,
    stream,
    target,
    token,
    tokenized,
    whole,
)

FORCED = {"tools": [TOOL], "tool_choice": "required"}


def texts(chunks: list[Any]) -> list[Any]:
    out = []
    for chunk in chunks:
        if chunk != "[DONE]" and chunk["choices"]:
            choice = chunk["choices"][0]
            out.append(choice["delta"].get("content") if "delta" in choice else choice["text"])
    return out


def reason(chunks: list[Any]) -> Any:
    return next(c["choices"][0]["finish_reason"] for c in reversed(chunks) if c != "[DONE]" and c["choices"])


# -- whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        answered({}),
        answered({"generated_text": "x"}),
        answered({"generated_text": "x", "details": None}),
        answered([{"generated_text": "x"}]),
        answered("<html>", 200, "text/html"),
    ],
)
def test_nonsense(answer: Answered) -> None:
    with pytest.raises(ApiError) as caught:
        whole(chat(), answer)
    assert (caught.value.status, caught.value.code) == (502, "upstream_invalid_response")


def test_prompt_tokens_come_from_where_they_can() -> None:
    def prompt_tokens(answer: Answered) -> int:
        plan = encode("chat", chat(), None, lambda _: tokenized("PROMPT", "P", "R"))
        tokens: int = json.loads(plan.decoder.reply([answer]).body)["usage"]["prompt_tokens"]
        return tokens

    bare = json.loads(generation("ab").body)
    assert prompt_tokens(generation("ab")) == 3
    assert prompt_tokens(answered(bare)) == 2
    bare["details"]["prefill"] = [{"id": 1, "text": "x", "logprob": None}]
    assert prompt_tokens(answered(bare)) == 1


def test_limit_is_kept_and_stop_strings_win() -> None:
    told = whole(chat(max_tokens=3), generation("abcdef"))
    assert told["choices"][0]["message"]["content"] == "abc"
    assert (told["choices"][0]["finish_reason"], told["usage"]["completion_tokens"]) == ("length", 3)
    told = whole(chat(max_tokens=3, stop="b"), generation("abcdef"))
    assert told["choices"][0]["message"]["content"] == "a"
    assert (told["choices"][0]["finish_reason"], told["usage"]["completion_tokens"]) == ("stop", 3)


def test_forced_call() -> None:
    told = whole(chat(**FORCED), generation('{"city":"Oslo"}', reason="eos_token"))
    (choice,) = told["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert call["function"] == {"name": "f", "arguments": '{"city":"Oslo"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert whole(chat(**FORCED), generation('{"ci'))["choices"][0]["finish_reason"] == "length"


def test_a_refused_tool_schema_is_the_tools_fault() -> None:
    body = {"error": "Input validation error: grammar is not valid: nope", "error_type": "validation"}
    assert encode("chat", chat(**FORCED)).decoder.failure(answered(body, 422)).param == "tools"
    assert encode("chat", chat()).decoder.failure(answered(body, 422)).param == "response_format"


def test_logprobs() -> None:
    tops = [[{"id": 1, "text": "x", "logprob": -3.0}, {"id": 2, "text": "a", "logprob": -0.5}], [], []]
    answer = generation("ab", "a", "b", "</s>", reason="eos_token", top_tokens=tops)
    body = json.loads(answer.body)
    body["details"]["tokens"][1]["logprob"] = None
    body["details"]["tokens"][2]["special"] = True
    (choice,) = whole(chat(logprobs=True, top_logprobs=2), answered(body))["choices"]
    first, second = choice["logprobs"]["content"]
    assert [top["token"] for top in first["top_logprobs"]] == ["a", "x"]
    assert (second["logprob"], second["bytes"]) == (-9999.0, [98])
    (choice,) = whole(chat(logprobs=True, stop="b"), answered(body))["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a"]
    (choice,) = whole(completion(logprobs=2), answered(body))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"a": -0.5, "x": -3.0}, {"b": -9999.0}],
        "text_offset": [0, 1],
    }


def test_fan_out() -> None:
    told = whole(completion(prompt=["A", "B"], n=2, echo=True), *(generation(text) for text in ("1", "22", "3", "4")))
    assert [choice["text"] for choice in told["choices"]] == ["A1", "A22", "B3", "B4"]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3]
    assert told["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}


# -- streams ---------------------------------------------------------------------------------------------------


def test_text_that_only_the_end_tells() -> None:
    assert texts(stream(chat(), [token("a"), token("", final="ab")])) == ["", "a", "b", None]
    assert texts(stream(chat(), [token("a"), token("b", final=" ab")])) == ["", "a", "b", None]


def test_a_stop_string_closes_the_upstream() -> None:
    (decoder,) = encode(
        "chat", chat(stop="STOP", stream=True, stream_options={"include_usage": True})
    ).decoder.streams()
    out = decoder.feed(token("aST") + token("OPb") + token("c"))
    assert (decoder.done, decoder.cut) == (True, True)
    chunks = events(out)
    assert texts(chunks) == ["", "a", None]
    assert reason(chunks) == "stop"
    assert chunks[-2]["usage"]["completion_tokens"] == 2
    assert decoder.feed(token("d", final="x")) == decoder.flush() == b""
    assert decoder.usage is not None
    assert decoder.usage.completion == 2


def test_nothing_before_the_first_event() -> None:
    (decoder,) = encode("chat", chat(stream=True)).decoder.streams()
    assert decoder.feed(b":\n\n:\n\n") == b""
    assert decoder.feed(token("")) != b""


@pytest.mark.parametrize("body", [b"data: nope\n\n", b"data: [1]\n\n", b'data: {"index":1}\n\n', b"data: {}\n\n"])
def test_nonsense_in_a_stream(body: bytes) -> None:
    *_, failed, done = stream(chat(), [token("a") + body])
    assert (failed["error"]["code"], done) == ("upstream_invalid_response", "[DONE]")


def test_what_came_before_an_error_is_kept() -> None:
    failed = b'data: {"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    *chunks, last, _ = stream(chat(), [token("a") + failed + token("b")])
    assert texts(chunks) == ["", "a"]
    assert last["error"]["code"] == "rate_limit_exceeded"


def test_an_end_without_blank_line() -> None:
    assert reason(stream(chat(), [token("a", final="a")[:-2]])) == "length"


def test_forced_call_in_a_stream() -> None:
    chunks = stream(
        chat(**FORCED, logprobs=True), [token('{"a'), token('":1}'), token("", final='{"a":1}', reason="eos_token")]
    )
    calls = [call for c in chunks[:-1] for call in c["choices"][0]["delta"].get("tool_calls", ())]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
    assert reason(chunks) == "tool_calls"
    for chunk in chunks[:-1]:
        check_told("CreateChatCompletionStreamResponse", chunk)


def test_completion_stream_with_echo() -> None:
    chunks = stream(completion(echo=True), [token("a"), token("b", final="ab")])
    assert texts(chunks) == ["Hi", "a", "b", ""]


def entries(chunks: list[Any]) -> list[tuple[str, list[str]]]:
    """Text and tokens of each chunk."""
    out = []
    for chunk in chunks:
        if chunk != "[DONE]" and chunk["choices"]:
            choice = chunk["choices"][0]
            told = choice["logprobs"]
            out.append((choice["delta"].get("content") or "", [e["token"] for e in told["content"]] if told else []))
    return out


def test_logprobs_travel_with_their_text() -> None:
    body = chat(logprobs=True, stop="ab", stream=True)
    assert entries(stream(body, [token("x"), token("a"), token("c"), token("ab", final="xacab")])) == [
        ("", []), ("x", ["x"]), ("ac", ["a", "c"]), ("", []),
    ]  # fmt: skip
    assert entries(stream(body, [token(""), token("xa"), token(""), token("d", final="xad")])) == [
        ("", []), ("", [""]), ("x", ["xa"]), ("ad", ["", "d"]), ("", []),
    ]  # fmt: skip


def test_legacy_logprobs_in_a_stream() -> None:
    chunks = stream(completion(logprobs=0), [token("a"), token("bc"), token("</s>", special=True, final="abc")])
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert [one and (one["tokens"], one["text_offset"], one["top_logprobs"]) for one in told] == [
        (["a"], [0], [{}]), (["bc"], [1], [{}]), None,
    ]  # fmt: skip


def test_streams_of_a_fan_out() -> None:
    body = completion(prompt=["A", "B"], n=2, stream=True, stream_options={"include_usage": True})
    decoders = encode("completions", body).decoder.streams()
    out = b"".join(decoder.feed(token("a")) for decoder in decoders)
    for decoder in (decoders[2], decoders[0], decoders[3], decoders[1]):
        assert not out.endswith(b"[DONE]\n\n")
        out += decoder.feed(token("b", final="ab"))
        assert decoder.done
    *chunks, usage, done = events(out)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert usage["usage"] == {"prompt_tokens": 6, "completion_tokens": 28, "total_tokens": 34}
    finished = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert finished == [2, 0, 3, 1]
    assert decoders[1].usage is not None


ALPHABET = st.text(alphabet="ab<\u00e9🙂", max_size=3)


@given(st.lists(ALPHABET, min_size=1, max_size=8), st.lists(st.sampled_from(["ab", "<", "a<é"]), max_size=2), st.data())
def test_streams_say_what_whole_answers_say(tokens: list[str], stops: list[str], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 9))
    text = "".join(tokens)
    raw = b"".join([*(token(one) for one in tokens[:-1]), token(tokens[-1], final=text)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    body = chat(stop=stops, max_tokens=limit, logprobs=True)
    (decoder,) = Walk(target()).run("chat", body | {"stream": True}).decoder.streams()
    chunks = events(decoded(decoder, pieces))
    reply = Walk(target()).run("chat", body).decoder.reply([generation(text, *tokens)])
    (choice,) = json.loads(reply.body)["choices"]
    assert "".join(part or "" for part in texts(chunks)) == choice["message"]["content"]
    assert reason(chunks) == choice["finish_reason"]
    said = [one for _, part in entries(chunks) for one in part]
    told = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert [one for one in said if one] == [one for one in told if one]
