"""The contract's cases for Ollama, at the dialect: what goes up, what comes back, under every cut of a stream."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Ask, Fetch, Plan, Reply
from proxy.dialects.ollama import DIALECT
from proxy.dialects.ollama.answer import created, finish_reason
from proxy.dialects.ollama.errors import failure
from proxy.dialects.ollama.members import fold_seed, think_level
from proxy.dialects.shared.openai_in import stop_strings
from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import PATHS, Steps, answered, check_schema, events, pump, request, target
from tests.vectors_support import cases, load, match

CASES = cases("ollama_chat") + cases("ollama_completions") + cases("ollama_embeddings")
WHOLE = [case for case in CASES if "chunks" not in case]
STREAMED = [case for case in CASES + cases("ollama_chat_stream") if "chunks" in case]
SCHEMAS = {
    "chat.completion": "CreateChatCompletionResponse",
    "chat.completion.chunk": "CreateChatCompletionStreamResponse",
    "text_completion": "CreateCompletionResponse",
    "list": "CreateEmbeddingResponse",
}


class Engine:
    """Answers a case's calls, each when its turn comes."""

    def __init__(self, case: dict[str, Any]) -> None:
        calls = case.get("upstream_calls") or []
        if case.get("upstream_request"):
            calls = [{"request": case["upstream_request"], "response": case["upstream_response"]}]
        self._left = copy.deepcopy(calls)

    def __call__(self, step: Ask | Fetch) -> Any:
        assert isinstance(step, Ask)
        if step.path == "/api/show":  # not part of the cases: a server too old to tell
            return answered("404 page not found", 404, "text/plain")
        return self.answer(step.path, step.body or b"null")

    def answer(self, path: str, body: bytes) -> Any:
        call = self._left.pop(0)
        assert call["request"]["path"] == path
        match(call["request"]["body"], json.loads(body))
        response = call["response"]
        kind = response.get("headers", {}).get("content-type", "application/json")
        return answered(response.get("body", ""), response["status"], kind)

    def done(self) -> None:
        assert not self._left


def run(case: dict[str, Any], engine: Engine) -> Plan | Reply:
    backend = case["backend"]
    to = target(backend["version"], model=backend["upstream_model"], options=backend["config"])
    body = case["request_in"]["body"]
    return Steps(engine).run(DIALECT.encode(request(PATHS[case["request_in"]["path"]], body), to))


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["name"])
def test_whole(case: dict[str, Any]) -> None:
    engine = Engine(case)
    expected = case["response_out"]
    dropped: tuple[str, ...] = ()
    usage = None
    try:
        result = run(case, engine)
        if isinstance(result, Plan):
            dropped = result.dropped
            answers = [engine.answer(call.path, call.body) for call in result.calls]
            if answers[0].status != 200:
                raise result.decoder.failure(answers[0])
            result = result.decoder.reply(answers)
        status, body, usage = 200, json.loads(result.body), result.usage
    except ApiError as exc:
        status, body = exc.status, exc.envelope()
    assert status == expected["status"]
    match(expected["body"], body)
    if status == 200:
        if case["request_in"]["body"].get("encoding_format") != "base64":
            check_schema(SCHEMAS[body["object"]], body)
        assert usage is not None
        assert usage.prompt == body["usage"]["prompt_tokens"]
    assert ", ".join(dropped) == expected.get("headers", {}).get("x-illm-dropped-params", "")
    engine.done()


def check_stream(case: dict[str, Any], pieces: list[bytes]) -> None:
    engine = Engine(case)
    plan = run(case, engine)
    assert isinstance(plan, Plan)
    (call,) = plan.calls
    engine.answer(call.path, call.body)
    (decoder,) = plan.decoder.streams()
    got = events(pump(decoder, pieces))
    match(case["chunks"], got)
    assert decoder.done


def body_of(case: dict[str, Any]) -> bytes:
    return "".join(case["upstream_response"]["stream_lines"]).encode()


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case["name"])
@pytest.mark.parametrize("cut", ["as written", "whole", "byte by byte"])
def test_stream(case: dict[str, Any], cut: str) -> None:
    body = body_of(case)
    pieces = {
        "as written": [text.encode() for text in case["upstream_response"]["stream_lines"]],
        "whole": [body],
        "byte by byte": [body[i : i + 1] for i in range(len(body))],
    }
    check_stream(case, pieces[cut])


@given(st.sampled_from(STREAMED), st.lists(st.integers(0, 4000), max_size=12))
def test_stream_cut_anywhere(case: dict[str, Any], cuts: list[int]) -> None:
    body = body_of(case)
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    check_stream(case, [body[a:b] for a, b in pairwise(places)])


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case["name"])
def test_chunks_fit_openais_schema(case: dict[str, Any]) -> None:
    plan = run(case, Engine(case))
    assert isinstance(plan, Plan)
    for chunk in events(pump(plan.decoder.streams()[0], [body_of(case)])):
        if chunk != "[DONE]" and "error" not in chunk and chunk["object"] != "text_completion":
            check_schema(SCHEMAS[chunk["object"]], chunk)


ERRORS = [case for case in cases("errors") if case["backend"] == "ollama"]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case["name"])
def test_errors(case: dict[str, Any]) -> None:
    expected = case["response_out"]
    answer = answered(case["upstream_body"], case["upstream_status"], case["upstream_content_type"])
    exc = failure(answer, "chat", "oll")
    assert exc.status == expected["status"]
    match(expected["body"], exc.envelope())
    assert expected.get("headers", {}).items() <= dict(exc.headers).items()


MAPS = [case for case in load("unit_maps")["cases"] if not case["map"].startswith("tgi")]
THINK = {
    "ollama.think (server >= 0.22, levels supported)": ("0.22.0", "qwen3:8b"),
    "ollama.think (0.17.7 <= server < 0.22)": ("0.17.7", "qwen3:8b"),
    "ollama.think (server < 0.17.7, model not gpt-oss*)": ("0.17.6", "qwen3:8b"),
}


@pytest.mark.parametrize("case", MAPS, ids=lambda case: f"{case['map']} {case['in']!r}")
def test_maps(case: dict[str, Any]) -> None:
    name, given_, out = case["map"], case["in"], case["out"]
    if name == "ollama.done_reason":
        got: Any = finish_reason(given_, case["tool_calls_seen"])
    elif name == "ollama.seed":
        got = fold_seed(given_)
    elif name == "created_at->created":
        got = created(given_)
    elif name == "stop":
        got = stop_strings({} if given_ is None else {"stop": given_})
    else:
        got = "<absent>" if given_ is None else think_level(given_, *THINK[name])
    assert got == out
    assert type(got) is type(out)
