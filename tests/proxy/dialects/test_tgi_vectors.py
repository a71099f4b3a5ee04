"""TGI's native dialect: every case of the contract, streams under every cut, and answers of a real router."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Answered, Ask, Fetch, Plan, Target
from proxy.dialects.tgi.job import finish_reason
from proxy.dialects.tgi.prompt import BOS
from proxy.errors import ApiError
from tests.proxy.dialects.tgi_native_support import (
    CAPTURES,
    HI,
    Walk,
    answered,
    chat,
    check_sent,
    check_told,
    completion,
    decoded,
    encode,
    events,
    stream,
    target,
    tokenized,
    whole,
)
from tests.vectors_support import cases, match

PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}
STREAMS = [*cases("tgi_chat_stream"), *cases("tgi_completions", prefix="completions_stream")]
CASES = [*cases("tgi_chat"), *STREAMS, *(c for c in cases("tgi_completions") if c not in STREAMS)]


def target_of(case: dict[str, Any]) -> Target:
    backend = case["backend"]
    options = {name: value for name, value in backend["config"].items() if name != "chat_mode"}
    checked = any(call["request"]["path"] == "/tokenize" for call in case.get("pre_calls", ()))
    return target(backend["version"], facts={} if checked else {BOS: ""}, options=options)


def planned(case: dict[str, Any]) -> Plan:
    """The calls that the case expects, after the ones that come first."""
    expected = list(case.get("pre_calls", ()))

    def answer(step: Ask | Fetch) -> Answered:
        assert isinstance(step, Ask)
        call = expected.pop(0)
        assert step.path == call["request"]["path"]
        assert step.body is not None
        match(call["request"]["body"], json.loads(step.body))
        return answered(call["response"]["body"], call["response"]["status"])

    asked = case["request_in"]
    plan = Walk(target_of(case), answer).run(PATHS[asked["path"]], asked["body"])
    assert not expected
    return plan


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_request(case: dict[str, Any]) -> None:
    calls = [call["request"] for call in case.get("upstream_calls", ())] or [case["upstream_request"]]
    if calls == [None]:
        with pytest.raises(ApiError) as caught:
            planned(case)
        _check_error(case["response_out"], caught.value)
        return
    plan = planned(case)
    assert [call.path for call in plan.calls] == [call["path"] for call in calls]
    for wanted, call in zip(calls, plan.calls, strict=True):
        match(wanted["body"], json.loads(call.body))
        check_sent(json.loads(call.body))
    told = case.get("response_out", {}).get("headers", {}).get("x-illm-dropped-params", "")
    assert sorted(plan.dropped) == sorted(filter(None, told.split(", ")))


WHOLE = [c for c in CASES if "upstream_calls" in c or "body" in (c["upstream_response"] or {})]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["name"])
def test_whole_answer(case: dict[str, Any]) -> None:
    told = [call["response"] for call in case.get("upstream_calls", ())] or [case.get("upstream_response")]
    plan = planned(case)
    answers = [
        answered(one["body"], one["status"], **{k.replace("-", "_"): v for k, v in one["headers"].items()})
        for one in told
    ]
    reply = plan.decoder.reply(answers)
    match(case["response_out"]["body"], json.loads(reply.body))
    name = "CreateChatCompletionResponse" if "chat" in case["request_in"]["path"] else "CreateCompletionResponse"
    check_told(name, json.loads(reply.body))


def _pieces(lines: list[str], cut: int | None) -> list[bytes]:
    body = "".join(lines).encode()
    if cut is None:
        return [line.encode() for line in lines]
    return [body[i : i + cut] for i in range(0, len(body), cut)] if cut else [body]


@pytest.mark.parametrize("cut", [None, 0, 1, 7], ids=["as written", "whole", "byte by byte", "in sevens"])
@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_stream(case: dict[str, Any], cut: int | None) -> None:
    (decoder,) = planned(case).decoder.streams()
    pieces = _pieces(case["upstream_response"]["stream_lines"], cut)
    if "chunks" not in case:
        fed = [decoder.feed(piece) for piece in pieces[:-2]]
        with pytest.raises(ApiError) as caught:
            fed += [decoder.feed(piece) for piece in pieces[-2:]]
        assert decoder.take_pending() == b"".join(fed) == b""
        _check_error(case["response_out"], caught.value)
        return
    chunks = events(decoded(decoder, pieces))
    match(case["chunks"], chunks)
    closed = case.get("upstream_closed_after_line")
    assert decoder.cut is (closed is not None)
    for chunk in chunks:
        if "choices" in chunk and chunk["object"] == "chat.completion.chunk":
            check_told("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("case", [c for c in STREAMS if "upstream_closed_after_line" in c], ids=lambda c: c["name"])
def test_upstream_is_closed_in_time(case: dict[str, Any]) -> None:
    (decoder,) = planned(case).decoder.streams()
    for number, line in enumerate(case["upstream_response"]["stream_lines"], 1):
        decoder.feed(line.encode())
        assert decoder.done is (number >= case["upstream_closed_after_line"])


@given(st.data())
def test_no_cut_changes_a_stream(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in STREAMS if "chunks" in case]))
    body = "".join(case["upstream_response"]["stream_lines"]).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    (decoder,) = planned(case).decoder.streams()
    match(case["chunks"], events(decoded(decoder, pieces)))


@pytest.mark.parametrize(
    "case", [c for c in cases("errors") if c["backend"] == "tgi" and c["upstream_status"]], ids=lambda c: c["name"]
)
def test_error(case: dict[str, Any]) -> None:
    decoder = encode("chat", chat()).decoder
    body = case["upstream_body"]
    exc = decoder.failure(answered(body, case["upstream_status"], case["upstream_content_type"]))
    _check_error(case["response_out"], exc)


def _check_error(expected: dict[str, Any], exc: ApiError) -> None:
    assert exc.status == expected["status"]
    match(expected["body"], exc.envelope())
    for name, value in expected.get("headers", {}).items():
        assert dict(exc.headers)[name] == value


@pytest.mark.parametrize("case", [c for c in cases("unit_maps") if c["map"] == "tgi.finish_reason"], ids=str)
def test_finish_reason(case: dict[str, Any]) -> None:
    assert finish_reason(case["in"]) == case["out"]


@pytest.mark.parametrize("case", [c for c in cases("unit_maps") if c["map"] == "tgi.seed"], ids=str)
def test_seed(case: dict[str, Any]) -> None:
    (call,) = encode("chat", chat(seed=case["in"])).calls
    assert json.loads(call.body)["parameters"]["seed"] == case["out"]


@pytest.mark.parametrize("case", [c for c in cases("unit_maps") if c["map"] == "stop"], ids=str)
def test_stop(case: dict[str, Any]) -> None:
    (call,) = encode("chat", chat(stop=case["in"])).calls
    assert json.loads(call.body)["parameters"].get("stop", []) == case["out"]


@pytest.mark.parametrize("template_bos", [False, True])
@pytest.mark.parametrize("case", cases("unit_chat_template"), ids=lambda case: case["name"])
def test_configured_template(case: dict[str, Any], template_bos: bool) -> None:
    options = {"chat_template": case["template"], "bos_token": case["bos_token"], "template_bos": template_bos}
    walk = Walk(target(options=options))
    if "error" in case:
        with pytest.raises(ApiError) as caught:
            walk.run("chat", chat(messages=case["messages"]))
        assert (caught.value.status, caught.value.code) == (case["error"]["status"], case["error"]["code"])
        assert "only user and assistant" in caught.value.message
        return
    (call,) = walk.run("chat", chat(messages=case["messages"])).calls
    wanted = case.get("rendered", case["inputs"]) if template_bos else case["inputs"]
    assert json.loads(call.body)["inputs"] == wanted
    assert not walk.asked


# -- a real router's answers -----------------------------------------------------------------------------------


def captured(name: str) -> Answered:
    one = CAPTURES[name]
    headers = {key.replace("-", "_"): value for key, value in one["headers"].items() if key != "content-type"}
    return answered(one["body"], one["status"], one["headers"].get("content-type", ""), **headers)


def test_captured_answer() -> None:
    told = whole(chat(), captured("generate"))
    (choice,) = told["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello there, world", "stop")
    assert told["usage"] == {"prompt_tokens": 27, "completion_tokens": 9, "total_tokens": 36}


@pytest.mark.parametrize(
    ("name", "stop", "text"),
    [("generate_stop", "world", "Hello there, "), ("generate_stop_inside_token", "ere, w", "Hello th")],
)
def test_captured_stop(name: str, stop: str, text: str) -> None:
    (choice,) = whole(chat(stop=stop), captured(name))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_captured_unicode() -> None:
    (choice,) = whole(chat(logprobs=True), captured("generate_unicode"))["choices"]
    assert choice["message"]["content"] == "Grüße 🙂 日本\u2028x"
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "Grüße 🙂 日本\u2028x"


def test_captured_alternatives() -> None:
    (choice,) = whole(chat(logprobs=True, top_logprobs=2), captured("generate_top_n_tokens"))["choices"]
    assert [[top["token"] for top in entry["top_logprobs"]] for entry in choice["logprobs"]["content"]] == [
        ["H", "ary"], ["e", " F"], ["ll", "em"],
    ]  # fmt: skip


def test_captured_best_of() -> None:
    told = whole(completion(best_of=2), captured("generate_best_of"))
    assert told["usage"]["completion_tokens"] == 4


STREAM_CAPTURES = {
    "stream_eos": ("Hello there, world", "stop", 9),
    "stream_length": (None, "length", None),
    "stream_stop": (None, "stop", None),
    "stream_top_n_tokens": ("He", "length", 2),
    "stream_keep_alive": (None, "length", None),
}


@pytest.mark.parametrize("cut", [0, 1, 50])
@pytest.mark.parametrize("name", STREAM_CAPTURES)
def test_captured_stream(name: str, cut: int) -> None:
    text, reason, tokens = STREAM_CAPTURES[name]
    said = CAPTURES[name]["body"]
    *chunks, usage, done = stream(chat(stream_options={"include_usage": True}), _pieces([said], cut))
    deltas = [chunk["choices"][0] for chunk in chunks]
    final = json.loads(said.split("data:")[-1])
    assert "".join(one["delta"].get("content", "") for one in deltas) == (text or final["generated_text"])
    assert deltas[-1]["finish_reason"] == reason
    assert usage["usage"]["completion_tokens"] == (tokens or final["details"]["generated_tokens"])
    assert usage["usage"]["prompt_tokens"] == final["details"]["input_length"]
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("name", "code", "texts"),
    [
        ("stream_err_validation", "invalid_value", None),
        ("overloaded_stream", "rate_limit_exceeded", None),
        ("stream_err_generation_midway", "upstream_generation_failed", "He"),
        ("stream_err_incomplete", "upstream_incomplete", "He"),
    ],
)
def test_captured_stream_errors(name: str, code: str, texts: str | None) -> None:
    *chunks, failed, done = stream(chat(), [CAPTURES[name]["body"].encode()])
    assert failed["error"]["code"] == code
    assert done == "[DONE]"
    assert ("".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) if chunks else None) == texts


@pytest.mark.parametrize(
    ("name", "status", "code", "param"),
    [
        ("err_total_too_long", 400, "context_length_exceeded", "messages"),
        ("err_incomplete", 500, "upstream_incomplete", None),
        ("err_generation_midway", 500, "upstream_generation_failed", None),
        ("err_temperature_0", 400, "invalid_value", "temperature"),
        ("err_seed_negative", 502, "upstream_invalid_response", None),
        ("err_bad_json", 502, "upstream_invalid_response", None),
        ("err_body_too_large", 413, "request_too_large", None),
        ("overloaded_generate", 429, "rate_limit_exceeded", None),
    ],
)
def test_captured_errors(name: str, status: int, code: str, param: str | None) -> None:
    exc = encode("chat", chat()).decoder.failure(captured(name))
    assert (exc.status, exc.code, exc.param) == (status, code, param)


def test_captured_prompt() -> None:
    """The tokenizer of that model puts <s> in front, and so does its template."""
    told = json.loads(CAPTURES["chat_tokenize"]["body"])
    again = [{"id": 1, "text": "", "start": 0, "stop": 0}, *told["tokenize_response"]]

    def answer(step: Ask | Fetch) -> Answered:
        assert isinstance(step, Ask)
        return captured("chat_tokenize") if step.path == "/chat_tokenize" else answered(again)

    to = target(facts={})
    walk = Walk(to, answer)
    for paths in (["/chat_tokenize", "/tokenize"], ["/chat_tokenize", "/tokenize", "/chat_tokenize"]):
        (call,) = walk.run("chat", chat()).calls
        assert json.loads(call.body)["inputs"] == told["templated_text"].removeprefix("<s>") != told["templated_text"]
        assert [step.path for step in walk.asked if isinstance(step, Ask)] == paths


@pytest.mark.parametrize("name", ["chat_tokenize_template_raises", "chat_tokenize_no_template"])
def test_captured_template_errors(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        encode("chat", chat(), None, lambda _: captured(name))
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")


def test_captured_info() -> None:
    to = target(None, facts={BOS: ""})
    walk = Walk(to, lambda step: captured("info") if getattr(step, "path", "") == "/info" else tokenized())
    walk.run("chat", chat(messages=HI))
    walk.run("chat", chat(messages=HI))
    assert [step.path for step in walk.asked if isinstance(step, Ask)] == ["/info", "/chat_tokenize", "/chat_tokenize"]


def test_seeds_differ_within_a_fan_out() -> None:
    plan = encode("chat", chat(n=3, seed=-1))
    assert [json.loads(call.body)["parameters"]["seed"] for call in plan.calls] == [2**64 - 1, 0, 1]
