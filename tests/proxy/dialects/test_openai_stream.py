"""Streams of engines that speak OpenAI: the same bytes come out however the network cuts what goes in, and the end
is always said. The streams of real engines are in `tests/data/streams`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects.base import Endpoint, Target, Usage
from proxy.dialects.openai.stream import LIMIT, PassThroughDecoder
from proxy.errors import ApiError
from proxy.framing import SseParser
from tests.vectors_support import DATA

TARGET = Target(kind="vllm", backend="b", model="up", public="pub")
DONE = b"data: [DONE]\n\n"
STREAMS = sorted(path.stem for path in (DATA / "streams").glob("*.txt"))
ENDPOINTS: dict[str, Endpoint] = {
    "chat": "chat", "completions": "completions", "responses": "responses", "messages": "messages",
}  # fmt: skip
SGLANG = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":5,"model":"up","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":'
    b'null,"matched_stop":null}],"usage":null}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":5,"model":"up","choices":[{"index":0,"delta":'
    b'{"content":"a \\"model\\":\\"up\\" \xc3\xa9"},"logprobs":null,"finish_reason":"stop","matched_stop":2}],'
    b'"usage":null}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":5,"model":"up","choices":[],"usage":'
    b'{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"prompt_tokens_details":null}}\n\n' + DONE
)


@dataclass
class Decoded:
    """What a client got, and the decoder afterwards."""

    pieces: list[bytes]
    decoder: PassThroughDecoder
    failure: ApiError | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def data(self) -> list[Any]:
        events = [event.data or "" for event in SseParser().feed(self.body)]
        return [text if text == "[DONE]" else json.loads(text) for text in events]


def decode(pieces: Iterable[bytes], endpoint: Endpoint = "chat", *, target: Target = TARGET, **how: Any) -> Decoded:
    """The pieces and the end of the body, as `relay` hands them over."""
    got = Decoded([], PassThroughDecoder(endpoint, target, **how))
    try:
        for piece in pieces:
            got.pieces.append(got.decoder.feed(piece))
        if not got.decoder.done:
            got.pieces.append(got.decoder.flush())
    except ApiError as exc:
        got.failure = exc
        got.pieces += [got.decoder.take_pending(), got.decoder.error(exc)]
    return got


def stream(name: str) -> tuple[Endpoint, bytes, bytes]:
    """A recorded stream: its endpoint, its bytes and the bytes that a client gets."""
    body = SGLANG if name == "sglang_chat" else (DATA / "streams" / f"{name}.txt").read_bytes()
    endpoint = ENDPOINTS[name.split("_")[1]]
    renamed = re.sub(rb'(?<!\\)"model":( ?)"[^"]*"', rb'"model":\1"pub"', body)
    ends = endpoint in ("responses", "messages") or body.endswith(DONE)
    return endpoint, body, renamed if ends else renamed + DONE


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place for place in places if 0 < place < len(body)}), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(edges)]


def chunk(index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": "x"}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "up", "choices": [choice], **more}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


# -- whatever the cuts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", [*STREAMS, "sglang_chat"])
def test_whole_and_byte_by_byte(name: str, several: bool) -> None:
    endpoint, body, expected = stream(name)
    several = several and endpoint == "chat"
    whole = decode([body], endpoint, several=several)
    single = decode(cut(body, range(len(body))), endpoint, several=several)

    assert whole.body == single.body == expected
    assert whole.decoder.usage == single.decoder.usage
    assert whole.decoder.done
    assert not whole.decoder.cut


@given(st.sampled_from([*STREAMS, "sglang_chat"]), st.sets(st.integers(0, 5000), max_size=12))
@settings(max_examples=150, deadline=None)
def test_random_cuts(name: str, places: set[int]) -> None:
    endpoint, body, expected = stream(name)
    got = decode(cut(body, places), endpoint)

    assert got.body == expected
    assert all(piece.endswith(b"\n\n") for piece in got.pieces if piece), "a piece ends inside an event"


@given(st.sets(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@settings(max_examples=100, deadline=None)
def test_random_cuts_of_a_stream_that_fails(places: set[int], newline: bytes) -> None:
    told = {"error": {"message": "boom", "type": "x", "code": 503}}
    body = b": ping\n\n" + event(chunk()) + b": ping\n\n" + event(chunk()) + event(told) + DONE
    got = decode(cut(body.replace(b"\n", newline), places))

    assert got.failure is not None
    first, second, failed, end = got.data
    assert first == second == chunk(model="pub")
    assert (failed["error"]["message"], failed["error"]["code"]) == ("boom", "backend_overloaded")
    assert end == "[DONE]"
    assert got.decoder.feed(event(chunk())) == b""


USAGE = {
    "vllm_chat": (14, 4), "vllm_completions": (3, 4), "vllm_messages": (14, 3), "llamacpp_chat": (22, 5),
    "llamacpp_responses": (22, 5), "llamacpp_messages": (22, 5), "transformers_chat": (14, 4), "sglang_chat": (3, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", USAGE)
def test_usage_is_noted(name: str) -> None:
    endpoint, body, _ = stream(name)

    assert decode([body], endpoint).decoder.usage == Usage(*USAGE[name])


def test_the_name_may_come_after_the_first_event() -> None:
    nameless = {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    events = [event(nameless), event(chunk()), event(chunk(finish="stop")), DONE]

    assert decode(events).body == decode([b"".join(events)]).body
    assert b'"up"' not in decode(events).body


def test_generated_text_that_looks_like_a_name_or_a_mark() -> None:
    text = 'a "model":"up" b "error" c [DONE] d "finish_reason":"stop"'
    spoken = chunk()
    spoken["choices"][0]["delta"]["content"] = text
    got = decode([event(spoken), event(chunk(finish="stop")), DONE])

    assert got.data[0]["choices"][0]["delta"]["content"] == text
    assert got.data[-1] == "[DONE]"
    assert len(got.data) == 3


# -- comments and other events that say nothing ------------------------------------------------------------------


@pytest.mark.parametrize("first", [b": ping\n\n", b": a\n: b\n\n: c\n\n", b"\n", b": ping\r\n\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 1000])
def test_before_the_first_event_nothing_goes_out(first: bytes, size: int) -> None:
    """The head of the answer waits for an event, since the first one may be an error."""
    decoder = PassThroughDecoder("chat", TARGET)

    assert b"".join(decoder.feed(piece) for piece in cut(first, range(0, len(first), size))) == b""
    assert decoder.feed(event(chunk())) == event(chunk(model="pub"))


@pytest.mark.parametrize("several", [False, True])
def test_later_comments_are_relayed(several: bool) -> None:
    events = [event(chunk()), b": ping\n\n", event(chunk(finish="stop")), DONE]

    assert b": ping\n\n" in decode(events, several=several).pieces


def test_null_is_dropped() -> None:
    """llama-server says it for choices that it has no slot for."""
    got = decode([event(chunk()), b"data: null\n\n", event(chunk(finish="stop")), DONE], several=True)

    assert len(got.data) == 3


def test_data_that_is_no_object_passes() -> None:
    got = decode([event(chunk()), b"data: hello\n\n", event(chunk(finish="stop")), DONE], several=True)

    assert b"data: hello\n\n" in got.pieces


# -- how it ends -------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[Endpoint, list[Any], bool]] = {
    "all choices ended": ("chat", [chunk(0, "stop")], True),
    "both of two ended": ("chat", [chunk(0), chunk(1), chunk(1, "stop"), chunk(0, "length")], True),
    "one of two ended": ("chat", [chunk(0), chunk(1), chunk(0, "stop")], False),
    "the first is still to come": ("chat", [chunk(1), chunk(1, "stop")], False),
    "none ended": ("chat", [chunk(0)], False),
    "nothing came": ("completions", [], False),
    "a reason that is none": ("chat", [chunk(0, "")], False),
    "completed": ("responses", [{"type": "response.completed", "response": {}}], True),
    "incomplete is an end too": ("responses", [{"type": "response.incomplete", "response": {}}], True),
    "no terminal event": ("responses", [{"type": "response.created", "response": {}}], False),
    "message_stop": ("messages", [{"type": "message_stop"}], True),
    "no message_stop": ("messages", [{"type": "message_start", "message": {}}], False),
    "no rule known": ("speech", [{"type": "speech.audio.delta"}], True),
}


@pytest.mark.parametrize(("endpoint", "events", "good"), ENDS.values(), ids=ENDS)
def test_the_body_ends_without_a_mark(endpoint: Endpoint, events: list[Any], good: bool) -> None:
    got = decode([event(one) for one in events], endpoint, several=endpoint == "chat")

    assert got.decoder.done
    assert (got.failure is None) is good
    if not good:
        assert got.failure is not None
        assert got.failure.code == "upstream_incomplete"
    if endpoint in ("chat", "completions"):
        assert got.body.count(DONE) == 1
        assert got.body.endswith(DONE)
    else:
        assert DONE not in got.body


def test_the_last_blank_line_may_be_missing() -> None:
    got = decode([event(chunk()), event(chunk(finish="stop")).rstrip(b"\n")])

    assert got.data == [chunk(model="pub"), chunk(finish="stop", model="pub"), "[DONE]"]


def test_the_only_event_lacks_its_blank_line() -> None:
    got = decode([event({"error": {"message": "boom"}}).rstrip(b"\n")])

    assert got.failure is not None
    assert got.failure.message == "boom"


def test_nothing_is_said_after_done() -> None:
    got = decode([event(chunk(finish="stop")) + DONE + event(chunk()) + DONE, event(chunk())])

    assert got.data == [chunk(finish="stop", model="pub"), "[DONE]"]


@pytest.mark.parametrize(("reason", "expected"), [("abort", "stop"), ("", None), ("length", "length")])
def test_finish_reasons(reason: str, expected: str | None) -> None:
    got = decode([event(chunk(finish=reason)), event(chunk(finish="stop")), DONE])

    assert got.data[0] == chunk(finish=expected, model="pub")


# -- errors inside -----------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[bytes, str, str]] = {
    "vLLM": (b'data: {"error":{"message":"boom","type":"I","param":null,"code":500}}\n\n', "boom", "upstream_error"),
    "flat": (b'data: {"object":"error","message":"boom","code":400,"param":"n"}\n\n', "boom", "invalid_value"),
    "spaced": (b'data: {"error" : {"message": "boom", "code": 503}}\n\n', "boom", "backend_overloaded"),
    "text": (b'data: {"error":"boom"}\n\n', "boom", "upstream_error"),
    "field": (b'error: {"code":400,"message":"boom","param":"n"}\n\n', "boom", "invalid_value"),
    "field, text": (b"error: boom\n\n", "boom", "upstream_error"),
}


@pytest.mark.parametrize(("said", "message", "code"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("place", ["first", "same read", "later"])
def test_an_error_event(said: bytes, message: str, code: str, place: str) -> None:
    pieces = {"first": [said], "same read": [event(chunk()) + said], "later": [event(chunk()), said]}[place]
    got = decode(pieces)

    assert got.failure is not None
    assert (got.failure.message, got.failure.code) == (message, code)
    assert got.data[:-2] == ([] if place == "first" else [chunk(model="pub")])
    assert got.data[-2] == got.failure.envelope()
    assert got.data[-1] == "[DONE]"


def test_an_error_of_the_responses_api_goes_on_counting() -> None:
    begun = {"type": "response.created", "sequence_number": 6, "response": {"model": "up"}}
    got = decode([event(begun), event({"type": "error", "message": "boom", "code": None})], "responses")

    assert got.data[0]["response"]["model"] == "pub"
    assert got.failure is not None
    assert got.data[1] == got.failure.envelope() | {
        "type": "error", "message": "boom", "code": "upstream_error", "param": None, "sequence_number": 7,
    }  # fmt: skip
    assert b"event: error\n" in got.body


def test_an_error_of_the_messages_api() -> None:
    said = {"type": "error", "error": {"type": "overloaded_error", "message": "boom"}}
    got = decode([event({"type": "message_start", "message": {"model": "up"}}), event(said)], "messages")

    assert got.data[1]["type"] == "error"
    assert got.data[1]["error"]["message"] == "boom"
    assert DONE not in got.body


def test_an_endless_event_is_refused() -> None:
    piece = b"x" * (2 * 1024 * 1024)
    got = decode([event(chunk()), b"data: ", *[piece] * (LIMIT // len(piece) + 1)])

    assert got.failure is not None
    assert got.failure.code == "upstream_invalid_response"
    assert "16 MiB" in got.failure.message
    assert got.data[0] == chunk(model="pub")
    assert got.data[-1] == "[DONE]"


# -- the name of reasoning ---------------------------------------------------------------------------------------

REASONING = [
    ("reasoning", {"reasoning_content": "t"}, {"reasoning": "t"}),
    ("reasoning_content", {"reasoning": "t"}, {"reasoning_content": "t"}),
    ("both", {"reasoning": "t"}, {"reasoning": "t", "reasoning_content": "t"}),
    ("passthrough", {"reasoning": "t"}, {"reasoning": "t"}),
    ("both", {"content": "x"}, {"content": "x"}),
]


@pytest.mark.parametrize(("wanted", "delta", "expected"), REASONING)
def test_reasoning(wanted: Any, delta: dict[str, str], expected: dict[str, str]) -> None:
    told = chunk()
    told["choices"][0]["delta"] = delta
    target = Target(kind="vllm", backend="b", model="up", public="pub", reasoning_field=wanted)
    got = decode([event(told), event(chunk(finish="stop")), DONE], target=target)

    assert got.data[0]["choices"][0]["delta"] == expected
    assert got.data[0]["model"] == "pub"
