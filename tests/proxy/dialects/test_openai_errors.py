"""Error answers: the contract's table, every shape that was seen on real engines, and what the messages say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.shared import errors
from proxy.dialects.shared.errors import (
    decode_error,
    decode_error_event,
    error_in_200,
    is_missing_route,
)
from proxy.dialects.shared.faults import CONTEXT
from proxy.dialects.shared.tgi_errors import decode_tgi_error, decode_tgi_event
from proxy.errors import ApiError
from tests.vectors_support import cases, data, match

# Ollama's native texts have a table of their own; rows without a status are failures of the connection.
ROWS = [case for case in cases("errors") if case["backend"] != "ollama" and case["upstream_status"] is not None]


def body_of(case: dict[str, Any]) -> bytes:
    body = case["upstream_body"]
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def decode(status: int, body: Any, endpoint: Any = "chat", **more: Any) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_error(status, "application/json", raw, endpoint, "fast", **more)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case["name"])
def test_contract(case: dict[str, Any]) -> None:
    decoder = decode_tgi_error if case["backend"] == "tgi" else decode_error
    exc = decoder(case["upstream_status"], case["upstream_content_type"], body_of(case), "chat", "fast")
    wanted = case["response_out"]
    match(wanted["body"], exc.envelope())
    assert exc.status == wanted["status"]
    assert wanted.get("headers", {}).items() <= dict(exc.headers).items()


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case["name"])
def test_contract_of_completions(case: dict[str, Any]) -> None:
    """Only the names of members differ."""
    decoder = decode_tgi_error if case["backend"] == "tgi" else decode_error
    exc = decoder(case["upstream_status"], case["upstream_content_type"], body_of(case), "completions", "fast")
    wanted = case["response_out"]["body"]["error"]
    renamed = {"top_logprobs": "logprobs"}
    if wanted["code"] == "context_length_exceeded":
        renamed["messages"] = "prompt"
    assert (exc.code, exc.param) == (wanted["code"], renamed.get(wanted["param"], wanted["param"]))


def test_the_context_pattern_is_the_contracts() -> None:
    assert CONTEXT.pattern == data("error-map")["context_regex"]


@pytest.mark.parametrize("kind", sorted(data("error-map")["tgi_error_type"]))
def test_every_tgi_kind(kind: str) -> None:
    row = data("error-map")["tgi_error_type"][kind]
    body = json.dumps({"error": "something went wrong", "error_type": kind}).encode()
    exc = decode_tgi_error(422, "application/json", body, "chat", "old")
    assert (exc.status, exc.type, exc.code, exc.param, exc.message) == (
        row["status"],
        row["type"],
        row["code"],
        row.get("param"),
        "something went wrong",
    )
    assert row.get("headers", {}).items() <= dict(exc.headers).items()
    if "x-should-retry" not in row.get("headers", {}):
        assert "x-should-retry" not in dict(exc.headers)


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [
        ("chat", "messages"),
        ("responses", "messages"),
        ("messages", "messages"),
        ("completions", "prompt"),
        ("embeddings", "input"),
        ("images", None),
    ],
)
def test_too_long_names_the_member(endpoint: Any, param: str | None) -> None:
    exc = decode(400, {"error": {"message": "prompt exceeds the available context size", "code": 400}}, endpoint)
    assert (exc.status, exc.code, exc.param) == (400, "context_length_exceeded", param)


@pytest.mark.parametrize(
    ("status", "body", "seen"),
    [
        # (a) nested, with a code that is a word
        (
            400,
            {"error": {"message": "no", "param": None, "code": "content_filter"}},
            (400, "content_filter", None, "no"),
        ),
        (429, {"error": {"message": "no", "code": "insufficient_quota"}}, (429, "insufficient_quota", None, "no")),
        (500, {"error": {"message": "no", "code": "500"}}, (500, "upstream_error", None, "no")),
        (
            500,
            {"error": {"code": 500, "message": "image input is not supported - hint: mmproj", "type": "server_error"}},
            (400, "unsupported_value", "messages", "image input is not supported - hint: mmproj"),
        ),
        # (b) a string
        (400, {"error": "bad"}, (400, None, None, "bad")),
        # (c) flat
        (
            400,
            {"object": "error", "message": "bad n", "param": "n", "code": 400},
            (400, "invalid_value", "n", "bad n"),
        ),
        # (d) FastAPI
        (400, {"detail": "prompt must be a string."}, (400, None, None, "prompt must be a string.")),
        (
            422,
            {"detail": [{"loc": ["body", "input", 0], "msg": "no"}, {"loc": ["body", "model"], "msg": "missing"}]},
            (400, "invalid_value", "input.0", "input.0: no; model: missing"),
        ),
        (422, {"detail": [{"loc": ["body"], "msg": "Field required"}]}, (400, None, None, "Field required")),
        (
            422,
            {"detail": [{"loc": ["body", 10], "msg": "JSON decode error"}]},
            (400, None, None, "10: JSON decode error"),
        ),
        (422, {"detail": {"error": {"message": "wrapped twice"}}}, (400, None, None, "wrapped twice")),
        # models and routes
        (404, {"error": {"message": "The model `x` does not exist."}}, (404, "model_not_found", "model", None)),
        (404, {"detail": "Model 'x' not found"}, (404, "model_not_found", "model", None)),
        (405, {"detail": "Method Not Allowed"}, (502, "upstream_invalid_response", None, None)),
        # other statuses
        (409, {"error": {"message": "busy"}}, (400, None, None, "busy")),
        (424, {"error": "failed"}, (400, None, None, "failed")),
        (502, {"error": {"message": "engine gone"}}, (502, "upstream_error", None, "engine gone")),
        (504, {"error": {"message": "too slow"}}, (504, "upstream_error", None, "too slow")),
        (507, {"error": "disk full"}, (500, "upstream_error", None, "disk full")),
        (503, {"error": {"message": "The queue is full."}}, (503, "backend_overloaded", None, None)),
        (503, {"message": "still LOADING", "object": "error", "code": "503"}, (503, "model_loading", None, None)),
        (307, {}, (502, "upstream_invalid_response", None, None)),
        (
            500,
            {"error": {"message": "x", "code": "context_length_exceeded"}},
            (400, "context_length_exceeded", "messages", "x"),
        ),
    ],
)
def test_shapes(status: int, body: Any, seen: tuple[Any, ...]) -> None:
    exc = decode(status, body)
    assert (exc.status, exc.code, exc.param) == seen[:3]
    if seen[3] is not None:
        assert exc.message == seen[3]


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        (400, (400, None)),
        (413, (413, "request_too_large")),
        (415, (502, "upstream_invalid_response")),
        (429, (429, "rate_limit_exceeded")),
        (500, (500, "upstream_error")),
        (502, (502, "upstream_invalid_response")),
        (503, (503, "backend_overloaded")),
        (504, (502, "upstream_invalid_response")),
        (520, (502, "upstream_invalid_response")),
    ],
)
def test_text_is_not_repeated(status: int, seen: tuple[int, str | None]) -> None:
    exc = decode_error(status, "text/plain", b"Traceback: sk-secret", "chat", "fast")
    assert (exc.status, exc.code) == seen
    assert "sk-secret" not in exc.message
    assert "Backend 'fast'" in exc.message


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("decoder", [decode_error, decode_tgi_error])
def test_refused_key_says_where_to_look(status: int, decoder: Any) -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-123456"}}'
    exc = decoder(status, "application/json", body, "chat", "fast")
    assert (exc.status, exc.code, exc.headers) == (502, "upstream_auth_failed", (("x-should-retry", "false"),))
    assert "'fast'" in exc.message
    assert "api_key in the configuration" in exc.message
    assert "sk-123456" not in exc.message


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, "1"),
        ("7", "7"),
        ("0.2", "1"),
        ("600", "60"),
        ("1e999", "60"),
        ("0", "1"),
        ("-3", "1"),
        ("nan", "1"),
        ("soon", "1"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "1"),
    ],
)
def test_retry_after(given: str | None, sent: str) -> None:
    assert dict(decode(429, {"error": "later"}, retry_after=given).headers) == {"retry-after": sent}
    overloaded = b'{"error":"Model is overloaded","error_type":"overloaded"}'
    exc = decode_tgi_error(429, "application/json", overloaded, "chat", "old", retry_after=given)
    assert dict(exc.headers) == {"retry-after": sent}


def test_no_retry_after_where_the_table_has_none() -> None:
    assert decode(400, {"error": "no"}, retry_after="5").headers == ()


@pytest.mark.parametrize(
    ("status", "body", "missing"),
    [
        (404, b'{"detail":"Not Found"}', True),
        (404, b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', True),
        (404, b"404 page not found", True),
        (404, b"", True),
        (405, b'{"detail":"Method Not Allowed"}', True),
        (404, b'{"error":{"message":"The model `x` does not exist.","param":"model","code":404}}', False),
        (404, b'{"error":{"message":"The model `nope` does not exist.","param":null}}', False),
        (404, b'{"error":{"message":"no such thing","code":"model_not_found"}}', False),
        (400, b'{"detail":"Not Found"}', False),
        (501, b'{"error":{"message":"no"}}', False),
    ],
)
def test_missing_route(status: int, body: bytes, missing: bool) -> None:
    assert is_missing_route(status, body) is missing


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"object": "error", "message": "bad", "code": 400}, (400, None)),
        ({"object": "error", "message": "bad", "code": 40}, (500, "upstream_error")),
        ({"error": {"message": "bad", "code": 422, "param": "n"}}, (400, "invalid_value")),
        ({"error": "bad"}, (500, "upstream_error")),
        ({"error": {"message": "bad key", "code": 401}}, (502, "upstream_auth_failed")),
        ({"error": {"message": "later", "code": "429"}}, (429, "rate_limit_exceeded")),
        ({"error": None, "choices": []}, None),
        ({"error": {"message": "x"}, "data": []}, None),
        ({"object": "response", "status": "failed", "error": {"message": "x", "code": "server_error"}}, None),
        ({"error": None, "tokens": [1]}, None),
    ],
)
def test_error_in_200(body: dict[str, Any], seen: tuple[int, str | None] | None) -> None:
    exc = error_in_200(body, "chat", "fast")
    assert (exc and (exc.status, exc.code)) == seen


@pytest.mark.parametrize(
    ("event", "status", "code", "message"),
    [
        ({"error": {"message": "boom", "code": 500}}, 500, "upstream_error", "boom"),
        ({"error": {"code": 503, "message": "busy"}}, 503, "backend_overloaded", "busy"),
        ({"error": {"object": "error", "message": "too big", "code": 400, "param": None}}, 400, None, "too big"),
        ({"error": "text"}, 500, "upstream_error", "text"),
        ({"message": "boom", "code": 500, "type": "server_error"}, 500, "upstream_error", "boom"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 500, "upstream_error", "busy"),
        ({"error": {"message": "maximum context length is 4", "code": 400}}, 400, "context_length_exceeded", None),
    ],
)
def test_events(event: dict[str, Any], status: int, code: str | None, message: str | None) -> None:
    exc = decode_error_event(event, "chat", "fast")
    assert (exc.status, exc.code) == (status, code)
    assert message in (None, exc.message)


@pytest.mark.parametrize(
    ("text", "status", "code", "param"),
    [
        ("Model is overloaded", 429, "rate_limit_exceeded", None),
        ("Request failed during generation: Server error: x", 500, "upstream_generation_failed", None),
        ("Incomplete generation stream", 500, "upstream_incomplete", None),
        ("Input validation error: `top_p` must be > 0.0 and < 1.0", 400, "invalid_value", "top_p"),
        ("Input validation error: `inputs` must have less than 512 tokens", 400, "context_length_exceeded", "messages"),
        ("Input validation error: `inputs` cannot be empty", 400, "invalid_value", "messages"),
        ("Input validation error: `max_new_tokens` must be strictly positive", 400, "invalid_value", "max_tokens"),
        ("Input validation error: grammar is not valid: `x`", 400, "invalid_value", "response_format"),
        ("Input validation error: it is wrong", 400, "invalid_value", None),
        ("Template error: template not found", 400, "chat_template_error", None),
        ("Tool error: Tool with name nope not found", 400, "invalid_tool", None),
        ("Something new", 500, "upstream_error", None),
    ],
)
def test_tgi_v1_events(text: str, status: int, code: str, param: str | None) -> None:
    exc = decode_tgi_event({"error": {"message": text, "http_status_code": 422}}, "chat", "old")
    assert (exc.status, exc.code, exc.param, exc.message) == (status, code, param, text)


def test_tgi_native_event_and_grammar_of_tools() -> None:
    event = {"error": "Input validation error: cannot compile regex from schema: x", "error_type": "validation"}
    assert decode_tgi_event(event, "chat", "old", tools=True).param == "tools"
    assert decode_tgi_error(422, "", json.dumps(event).encode(), "chat", "old", tools=True).param == "tools"
    cut = {"error": "Tool error: Failed to parse generated text: EOF", "error_type": "tool_error"}
    assert decode_tgi_event(cut, "chat", "old").headers == (("x-should-retry", "false"),)
    assert "'old'" in decode_tgi_event({"error": {}}, "chat", "old").message


def test_tgi_that_could_not_read_the_body() -> None:
    exc = decode_tgi_error(422, "text/plain", b"Failed to deserialize: stop", "chat", "old")
    assert exc.code == "upstream_invalid_response"
    assert "Failed to deserialize: stop" in exc.message
    assert "bug of the proxy" in exc.message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 1000) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "detail", "message", "type", "param", "code", "object", "error_type", "loc", "msg"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.integers(300, 599), JSON_VALUES)
def test_any_json_gives_an_envelope(status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    for decoder in (decode_error, decode_tgi_error):
        check(decoder(status, "application/json", body, "chat", "fast"))
    if isinstance(value, dict):
        check(decode_error_event(value, "chat", "fast"))
        check(decode_tgi_event(value, "chat", "fast"))
        error_in_200(value, "chat", "fast")


@given(st.integers(300, 599), st.binary(max_size=40))
def test_any_bytes_give_an_envelope(status: int, body: bytes) -> None:
    check(decode_error(status, "", body, "chat", "fast"))
    check(decode_tgi_error(status, "", body, "chat", "fast"))


def check(exc: ApiError) -> None:
    assert exc.message
    assert exc.status in (400, 404, 413, 422, 429, 500, 502, 503, 504)
    assert exc.code is None or (exc.code and not exc.code.isdigit())
    assert exc.param is None or exc.param
    assert exc.type in (
        "invalid_request_error",
        "rate_limit_error",
        "server_error",
        "RemoteEndpointError",
        "CapabilityNotSupported",
    )


def test_the_public_names() -> None:
    """`is_missing_route` and the decoder agree on what a missing route is."""
    for body in (b'{"detail":"Not Found"}', b"<html>", b""):
        assert is_missing_route(404, body)
        assert decode(404, body).code == "upstream_invalid_response"
    assert errors.MAX_RETRY_AFTER == 60


def test_an_error_inside_an_errors_text() -> None:
    """Ollama's /v1 passes llama-server's errors on as text."""
    inner = {"error": {"code": 400, "message": "request exceeds the available context size", "type": "x"}}
    body = {"error": {"message": json.dumps(inner), "type": "invalid_request_error", "param": None, "code": None}}
    told = decode_error(400, "application/json", json.dumps(body).encode(), "chat", "b")

    assert (told.message, told.code) == ("request exceeds the available context size", "context_length_exceeded")
