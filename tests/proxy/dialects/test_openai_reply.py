"""Whole answers of engines that speak OpenAI: the public name, OpenAI's finish reasons, errors that come with a 200,
and the rest as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.base import Answered, Endpoint, ReasoningField, Reply, Request, ResponseDecoder, Target, Usage
from proxy.dialects.openai import DIALECT
from proxy.dialects.openai.reply import SMALL, decode_json
from proxy.errors import ApiError
from proxy.wire import members

TARGET = Target(kind="vllm", backend="b", model="up", public="pub")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def chat(**more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": "up", "choices": [choice], "usage": USAGE} | more


def decoded(body: Any, endpoint: Endpoint = "chat", reasoning: ReasoningField = "passthrough") -> Reply:
    target = Target(kind="vllm", backend="b", model="up", public="pub", reasoning_field=reasoning)
    return decode_json(endpoint, target, body if isinstance(body, bytes) else json.dumps(body).encode())


def failure(body: Any, endpoint: Endpoint = "chat") -> ApiError:
    with pytest.raises(ApiError) as caught:
        decoded(body, endpoint)
    return caught.value


def test_the_name_and_nothing_else() -> None:
    body = b'{"id":"c","model" : "up","big":12345678901234567890,"f":1.0,"s":"\\u00e9","in":{"model":"up"},"u":null}'

    assert decoded(body).body == (
        b'{"id":"c","model":"pub","big":12345678901234567890,"f":1.0,"s":"\\u00e9","in":{"model":"up"},"u":null}'
    )


@pytest.mark.parametrize("body", [b' {"model":"pub", "x" : 1.0}', b'{"x" : [ ]}', b"[ 1, 2 ]", b'"text"', b"null"])
def test_what_needs_no_change_is_not_touched(body: bytes) -> None:
    assert decoded(body).body is body


@pytest.mark.parametrize("name", ["a/b.gguf", "", "é", 'with "quotes" \\'])
def test_any_upstream_name(name: str) -> None:
    assert json.loads(decoded(chat(model=name)).body)["model"] == "pub"


@pytest.mark.parametrize(("reason", "expected"), [("abort", "stop"), ("", None), ("tool_calls", "tool_calls")])
def test_finish_reasons(reason: str, expected: str | None) -> None:
    body = chat()
    body["choices"][0]["finish_reason"] = reason

    assert json.loads(decoded(body).body)["choices"][0]["finish_reason"] == expected
    assert json.loads(decoded(body).body)["model"] == "pub"


USAGES: list[tuple[dict[str, Any], Usage | None]] = [
    (chat(), Usage(3, 2)),
    (chat(usage=None), None),
    (chat(usage={"prompt_tokens": None}), Usage(0, 0)),
    ({"object": "response", "usage": {"input_tokens": 5, "output_tokens": 1}, "error": None}, Usage(5, 1)),
    ({"object": "list", "data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}, Usage(4, 0)),
    ({"object": "list", "data": []}, None),
]


@pytest.mark.parametrize(("body", "expected"), USAGES)
def test_usage(body: dict[str, Any], expected: Usage | None) -> None:
    assert decoded(body).usage == expected


@pytest.mark.parametrize("first", [True, False])
def test_a_large_answer_is_not_parsed(first: bool) -> None:
    data = {"data": [{"embedding": "A" * SMALL}]}
    rest = {"model": "up", "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    body = json.dumps(rest | data if first else data | rest).encode()
    reply = decoded(body, "embeddings")

    assert reply.body == body.replace(b'"model": "up"', b'"model": "pub"')
    assert reply.usage == Usage(7, 0)


def test_a_number_too_large_for_json_readers_passes() -> None:
    assert b"1e999" in decoded(b'{"model":"up","score":1e999}').body


# -- errors that come with a 200 ---------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"object": "error", "message": "boom", "code": 400, "param": "n"}, 400, "invalid_value"),
    ({"object": "error", "message": "boom", "code": None}, 500, "upstream_error"),
    ({"error": {"message": "boom", "code": 503}}, 503, "backend_overloaded"),
    ({"error": "boom"}, 500, "upstream_error"),
]


@pytest.mark.parametrize(("body", "status", "code"), ERRORS)
def test_an_error_with_a_200(body: dict[str, Any], status: int, code: str | None) -> None:
    exc = failure(body)

    assert (exc.status, exc.code, exc.message) == (status, code, "boom")


@pytest.mark.parametrize(
    "body", [chat(error=None), chat(error={"message": "x"}), {"object": "response", "error": {"message": "x"}}]
)
def test_an_answer_that_mentions_an_error(body: dict[str, Any]) -> None:
    assert json.loads(decoded(body, "responses").body)["error"] == body["error"]


@pytest.mark.parametrize("body", [b"", b"oops", b'{"model":', b"{}x"])
def test_json_that_is_none(body: bytes) -> None:
    exc = failure(body)

    assert (exc.status, exc.code) == (502, "upstream_invalid_response")
    assert "'b'" in exc.message


# -- reasoning ---------------------------------------------------------------------------------------------------

REASONING: list[tuple[ReasoningField, dict[str, Any], dict[str, Any]]] = [
    ("passthrough", {"reasoning": "t"}, {"reasoning": "t"}),
    ("reasoning", {"reasoning_content": "t"}, {"reasoning": "t"}),
    ("reasoning_content", {"reasoning": "t", "reasoning_content": None}, {"reasoning_content": "t"}),
    ("both", {"reasoning_content": "t"}, {"reasoning": "t", "reasoning_content": "t"}),
]


@pytest.mark.parametrize(("wanted", "given", "expected"), REASONING)
def test_reasoning(wanted: ReasoningField, given: dict[str, Any], expected: dict[str, Any]) -> None:
    body = chat()
    body["choices"][0]["message"] = {"content": "x"} | given

    assert json.loads(decoded(body, reasoning=wanted).body)["choices"][0]["message"] == {"content": "x"} | expected


# -- other content types -----------------------------------------------------------------------------------------


def decoder(target: Target = TARGET, endpoint: Endpoint = "chat") -> ResponseDecoder:
    body = b'{"model":"pub","messages":[]}'
    return DIALECT.encode(Request(endpoint, body, members(body)), target).decoder


@pytest.mark.parametrize("content_type", ["text/plain; charset=utf-8", "text/vtt", "application/x-subrip"])
def test_text_passes(content_type: str) -> None:
    body = b'"model":"up" \xff'

    passed = decoder(endpoint="transcriptions").reply([Answered(200, content_type, body)])
    assert passed == Reply(body, content_type)
    with pytest.raises(ApiError, match="not JSON"):  # no text can be a chat
        decoder().reply([Answered(200, content_type, body)])


def test_a_stream_nobody_asked_for_becomes_one_object() -> None:
    parts = [{"role": "assistant", "content": "Hel"}, {"content": "lo"}]
    chunks = [{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up",
               "choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]  # fmt: skip
    chunks[-1]["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
    body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)
    answer = Answered(200, "text/event-stream", body + b"data: [DONE]\n\n")
    whole = json.loads(decoder().reply([answer]).body)

    assert (whole["object"], whole["model"]) == ("chat.completion", "pub")
    assert whole["choices"][0]["message"]["content"] == "Hello"
    assert whole["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("healthy", "expected"),
    [(True, (422, "unsupported_endpoint")), (False, (502, "upstream_invalid_response"))],
)
def test_a_missing_route_of_a_healthy_engine_is_a_missing_ability(healthy: bool, expected: tuple[int, str]) -> None:
    target = Target(kind="vllm", backend="b", model="up", public="pub", healthy=healthy)
    exc = decoder(target).failure(Answered(404, "application/json", b'{"detail":"Not Found"}'))

    assert (exc.status, exc.code) == expected
