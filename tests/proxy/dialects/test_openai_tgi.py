"""TGI's own /v1: the contract's cases, requests and answers; and that answers are what OpenAI's client expects."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from proxy.dialects.openai.tgi import encode
from proxy.dialects.shared.tgi_errors import decode_tgi_event
from tests.proxy.dialects.tgi_support import check_chunks, check_whole_chat, fixer, run, target
from tests.vectors_support import cases, match, sse_events

CASES = cases("passthrough", prefix="tgi_")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_request(case: dict[str, Any]) -> None:
    asked = case["request_in"]["body"]
    before = copy.deepcopy(asked)
    body, dropped = encode(endpoint_of(case), asked, target(case["backend"]["version"]))
    match(case["upstream_request"]["body"], body)
    said = case.get("response_out", {}).get("headers", {}).get("x-illm-dropped-params", "")
    assert sorted(dropped) == sorted(filter(None, said.split(", ")))
    assert asked == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_answer(case: dict[str, Any]) -> None:
    fix = fixer(endpoint_of(case), case["request_in"]["body"])
    answer = case["upstream_response"]
    if "body" in answer:
        match(case["response_out"]["body"], fix.whole(answer["body"]))
        return
    events = list(sse_events(answer["stream_lines"]))
    assert events.pop() == "[DONE]"
    if "response_out" in case:
        exc = decode_tgi_event(events[0], endpoint_of(case), "old")
        match(case["response_out"]["body"], exc.envelope())
        assert exc.status == case["response_out"]["status"]
        assert case["response_out"]["headers"].items() <= dict(exc.headers).items()
        return
    match(case["chunks"], [*run(fix, events), "[DONE]"])


def endpoint_of(case: dict[str, Any]) -> Any:
    return "chat" if case["request_in"]["path"].endswith("chat/completions") else "completions"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_answers_are_openais(case: dict[str, Any]) -> None:
    fix = fixer(endpoint_of(case), case["request_in"]["body"])
    answer = case["upstream_response"]
    if "body" in answer:
        check_whole_chat(fix.whole(answer["body"]))
    elif "chunks" in case:
        check_chunks(endpoint_of(case), run(fix, list(sse_events(answer["stream_lines"]))[:-1]))
