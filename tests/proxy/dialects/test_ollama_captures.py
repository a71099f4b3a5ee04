"""What running Ollama servers said, replayed: every answer decodes into what OpenAI's schema allows, every error into
the contract's table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.ollama.errors import failure, is_missing_route
from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import HI, TOOL, answered, check_schema, encode, events, pump, target
from tests.vectors_support import DATA

CAPTURES = {
    f"{file.stem} {name}": capture
    for file in sorted((DATA / "ollama").glob("*.json"))
    for name, capture in json.loads(file.read_text(encoding="utf-8")).items()
}
TEXT = ("/api/chat", "/api/generate")
WHOLE = [
    n for n, c in CAPTURES.items() if c["status"] == 200 and c["path"] in TEXT and "ndjson" not in c["content_type"]
]
STREAMS = [n for n, c in CAPTURES.items() if "ndjson" in c["content_type"]]


def plan_for(capture: dict[str, Any], stream: bool) -> Any:
    asked = json.loads(capture["request"] or "{}")
    body: dict[str, Any] = {"stream": stream, "stream_options": {"include_usage": True}}
    if capture["path"] == "/api/chat":
        body |= {"messages": HI, "logprobs": "logprobs" in asked, "tools": [TOOL] if "tools" in asked else None}
        if "top_logprobs" in asked:
            body["top_logprobs"] = asked["top_logprobs"]
        return encode("chat", body, target())
    return encode("completions", body | {"prompt": "x"}, target())


def test_there_are_captures() -> None:
    assert len(WHOLE) > 20
    assert len(STREAMS) > 8
    assert len(FAILURES) > 25


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers(name: str) -> None:
    capture = CAPTURES[name]
    plan = plan_for(capture, False)
    answer = answered(capture["body"], 200, capture["content_type"])
    if '"error"' in capture["body"][:10]:
        with pytest.raises(ApiError):
            plan.decoder.reply([answer])
        return
    body = json.loads(plan.decoder.reply([answer]).body)
    check_schema("CreateChatCompletionResponse" if capture["path"] == "/api/chat" else "CreateCompletionResponse", body)
    said = json.loads(capture["body"])
    (choice,) = body["choices"]
    if capture["path"] == "/api/chat":
        assert (choice["message"]["content"] or "") == said["message"]["content"]
        assert choice["message"].get("reasoning_content", "") == said["message"].get("thinking", "")
        calls = said["message"].get("tool_calls", [])
        got = choice["message"].get("tool_calls", [])
        assert [json.loads(one["function"]["arguments"]) for one in got] == [c["function"]["arguments"] for c in calls]
        if calls:
            assert choice["finish_reason"] == "tool_calls"
    else:
        assert choice["text"] == said["response"]
    assert body["usage"]["prompt_tokens"] == said.get("prompt_eval_count", 0)
    assert abs(body["created"] - 1795240000) < 86400 * 2


@pytest.mark.parametrize("cut", [None, 1, 7])
@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str, cut: int | None) -> None:
    capture = CAPTURES[name]
    raw = capture["body"].encode()
    lines = [json.loads(text) for text in capture["body"].splitlines()]
    (decoder,) = plan_for(capture, True).decoder.streams()
    pieces = [raw] if cut is None else [raw[i : i + cut] for i in range(0, len(raw), cut)]
    chunks = events(pump(decoder, pieces))
    assert chunks[-1] == "[DONE]"
    failed = [line["error"] for line in lines if "error" in line]
    assert [chunk["error"]["message"] for chunk in chunks[:-1] if "error" in chunk] == failed
    answers = [chunk for chunk in chunks[:-1] if "error" not in chunk]
    if capture["path"] == "/api/chat":
        for chunk in answers:
            check_schema("CreateChatCompletionStreamResponse", chunk)
    parts = [chunk["choices"][0] for chunk in answers if chunk["choices"]]
    texts = [part.get("text", part.get("delta", {}).get("content", "")) for part in parts]
    said = [line.get("response", line.get("message", {}).get("content", "")) for line in lines]
    assert "".join(texts) == "".join(said)
    calls = [one for part in parts for one in part.get("delta", {}).get("tool_calls", [])]
    assert [one["index"] for one in calls] == list(range(len(calls)))
    assert len(calls) == sum(len(line.get("message", {}).get("tool_calls", [])) for line in lines)
    if not failed:
        guard = "repetition_guard" in name
        assert parts[-1]["finish_reason"] in (("length",) if guard else ("stop", "length", "tool_calls"))
        counted = 31 if guard else lines[-1]["eval_count"]
        assert answers[-1]["usage"]["completion_tokens"] == counted


# The client's status, code and param for each error that was seen; all others are a plain 400 with their own text.
FAILURES: dict[str, tuple[int, str | None, str | None]] = {
    "err_chat_embed_model": (422, "unsupported_endpoint", "model"),
    "err_cloud_model": (502, "upstream_auth_failed", None),
    "err_crash_nonstream": (500, "upstream_error", None),
    "err_ctx_long_prompt_gguf_template": (400, "context_length_exceeded", "messages"),
    "err_ctx_shift_false": (400, "context_length_exceeded", "messages"),
    "err_ctx_truncate_false": (400, "context_length_exceeded", "messages"),
    "err_embed_long_truncate_false": (400, "context_length_exceeded", "messages"),
    "err_embed_model_unknown": (404, "model_not_found", "model"),
    "err_embed_on_chat_model": (422, "unsupported_endpoint", "model"),
    "err_format_schema": (400, "invalid_value", "response_format"),
    "err_format_stream": (400, "invalid_value", "response_format"),
    "err_format_value": (400, "invalid_value", "response_format"),
    "err_format_nonstream": (400, "invalid_value", "response_format"),
    "err_generate_model_missing": (404, "model_not_found", "model"),
    "err_generate_suffix_unsupported": (422, "unsupported_endpoint", "model"),
    "err_image_text_model_gguf_template": (400, "unsupported_value", "messages"),
    "err_image_text_model_go_template": (400, "unsupported_value", "messages"),
    "err_load_runner_exits": (500, "upstream_error", None),
    "err_logprobs_tools_gguf_template": (400, "unsupported_parameter", "logprobs"),
    "err_model_unknown": (404, "model_not_found", "model"),
    "err_model_uppercase": (404, "model_not_found", "model"),
    "err_option_seed_type": (400, "invalid_value", "options"),
    "err_option_stop_string": (400, "invalid_value", "options"),
    "err_queue_full": (503, "backend_overloaded", None),
    "err_think_unsupported": (400, "unsupported_parameter", "reasoning_effort"),
    "err_think_value": (400, "unsupported_parameter", "reasoning_effort"),
    "err_think_level": (400, "unsupported_parameter", "reasoning_effort"),
    "err_think_max": (400, "unsupported_parameter", "reasoning_effort"),
    "err_tools_cut_by_num_predict": (500, "upstream_generation_failed", None),
    "err_tools_no_parameters": (400, "invalid_value", "tools"),
    "err_tools_unsupported": (400, "unsupported_parameter", "tools"),
    "err_tools_gguf_template": (400, "unsupported_parameter", "tools"),
}


@pytest.mark.parametrize("name", [name for name, c in CAPTURES.items() if c["status"] != 200])
def test_errors(name: str) -> None:
    capture = CAPTURES[name]
    tools = "tools_" in name
    exc = failure(answered(capture["body"], capture["status"], capture["content_type"]), "chat", "oll", tools=tools)
    expected = FAILURES.get(name.split(" ")[1], (400, None, None))
    assert (exc.status, exc.code, exc.param) == expected
    said = json.loads(capture["body"])["error"]
    inner = json.loads(said)["error"]["message"] if said.startswith("{") else said
    assert inner in exc.message


@pytest.mark.parametrize(
    ("status", "body", "code", "told"),
    [
        (400, "", None, 400),
        (403, "", "upstream_auth_failed", 502),
        (404, "404 page not found", "upstream_invalid_response", 502),
        (404, {"error": {"message": "x"}}, "model_not_found", 404),
        (404, {"detail": "Not Found"}, "upstream_invalid_response", 502),
        (405, "405 method not allowed", "upstream_error", 500),
        (418, {"error": "teapot"}, "upstream_error", 500),
        (500, {"error": "the input length exceeds the context length"}, "context_length_exceeded", 400),
        (500, '{"error":"{broken"}', "upstream_error", 500),
        (404, {"error": "model 'longer than the context' not found"}, "model_not_found", 404),
        (500, {"error": '{"error":{"message":"too much","type":"exceed_context_size_error"}}'},
         "context_length_exceeded", 400),
        (501, "", "unsupported_endpoint", 422),
        (502, "<html>", "upstream_error", 502),
        (504, "", "upstream_error", 504),
    ],
)  # fmt: skip
def test_other_errors(status: int, body: Any, code: str | None, told: int) -> None:
    exc = failure(answered(body, status, ""), "chat", "oll")
    assert (exc.status, exc.code) == (told, code)
    assert exc.message


def test_waiting_as_long_as_ollama_says() -> None:
    exc = failure(answered({"error": "too many"}, 429, retry_after="7"), "chat", "oll")
    assert dict(exc.headers) == {"retry-after": "7"}
    exc = failure(answered({"error": "busy"}, 503), "chat", "oll")
    assert dict(exc.headers) == {"retry-after": "1"}


def test_a_missing_route_is_not_a_missing_model() -> None:
    assert is_missing_route(answered("404 page not found", 404, "text/plain"))
    assert not is_missing_route(answered({"error": "model 'x' not found"}, 404))
    assert not is_missing_route(answered("", 500))
