"""Clients that leave and engines that break: the engine sees the closed connection, the client never a silent cut."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, wait_until
from tests.native.support import ENDLESS, chat, content, events, told
from tests.standins.support import StandIn, asking

BOTH = pytest.mark.parametrize("model", ["tgi", "ollama"])
DIRECTED = {"tgi": "/generate_stream", "ollama": "/api/chat"}


def orders(**directive: Any) -> Any:
    """Messages that tell the stand-in what to do."""
    return [{"role": "user", "content": f"@@{json.dumps(directive)}@@"}]


@BOTH
def test_leaving_a_stream(sdk: openai.OpenAI, engines: dict[str, StandIn], model: str) -> None:
    engine = engines[model]
    engine.reset()
    stream = sdk.chat.completions.create(model=model, messages=ENDLESS, stream=True, max_tokens=1000)
    seen = sum(bool(next(stream).choices[0].delta.content) for _ in range(4))
    assert seen
    stream.close()
    (left,) = engine.wait_closed()
    assert left["tokens"] < 1000
    assert not engine.running()


@BOTH
def test_leaving_before_the_answer(gateway: Gateway, engines: dict[str, StandIn], model: str) -> None:
    engine = engines[model]
    engine.reset()
    with asking(f"{gateway.v1}/chat/completions", {"model": model, "messages": orders(stall_at=1)}):
        wait_until(engine.running, "the engine has it")
    assert len(engine.wait_closed()) == 1


@BOTH
def test_leaving_a_fan_out_ends_all_of_it(sdk: openai.OpenAI, engines: dict[str, StandIn], model: str) -> None:
    engine = engines[model]
    engine.reset()
    stream = sdk.chat.completions.create(model=model, messages=ENDLESS, stream=True, max_tokens=1000, n=2)
    seen: set[int] = set()
    while seen != {0, 1}:
        seen |= {choice.index for choice in next(stream).choices if choice.delta.content}
    stream.close()
    assert len(engine.wait_closed(2)) == 2
    assert not engine.running()


@BOTH
def test_one_failing_child_ends_the_others(gateway: Gateway, engines: dict[str, StandIn], model: str) -> None:
    engine = engines[model]
    engine.reset()
    path = "/generate" if model == "tgi" else DIRECTED[model]
    engine.fault({"fail_prefill": "boom"}, path=path)
    reply = chat(gateway, model, messages=ENDLESS, n=2, max_tokens=4000)
    assert reply.status_code == 500, reply.text
    assert "boom" in reply.json()["error"]["message"]
    assert len(engine.wait_closed()) == 1
    assert not engine.running()


@BOTH
@pytest.mark.parametrize("how", ["cut_at", "reset_at", "vanish_at", "garbage_at", "fail_at"])
def test_a_broken_stream_ends_with_an_error(
    gateway: Gateway, engines: dict[str, StandIn], model: str, how: str
) -> None:
    engines[model].reset()
    body = {"model": model, "messages": orders(**{how: 3}, pieces=7, held=True), "stream": True}
    with httpx.stream("POST", f"{gateway.v1}/chat/completions", json=body, timeout=PATIENCE, trust_env=False) as reply:
        pieces, text = reply.iter_text(), ""
        while not any(word in text for word in ('"content":"Once', '"content":" upon')):
            text += next(pieces)
        engines[model].release()  # now, since a reset takes along what isn't read yet
        text += "".join(pieces)
    found = events(reply, text)
    assert content(found[:-2])
    assert set(found[-2]) == {"error"}
    assert set(found[-2]["error"]) == {"message", "type", "param", "code"}
    assert found[-1] == "[DONE]"
    assert not any(choice["finish_reason"] for event in found[:-2] for choice in event["choices"])
    code = {"garbage_at": "upstream_invalid_response", "fail_at": None}.get(how, "upstream_incomplete")
    assert code in (None, found[-2]["error"]["code"])


@BOTH
@pytest.mark.parametrize("how", ["cut_at", "reset_at", "vanish_at", "garbage_at", "fail_at"])
def test_a_broken_answer_is_an_error(gateway: Gateway, model: str, how: str) -> None:
    reply = chat(gateway, model, messages=orders(**{how: 3}))
    if (model, how) == ("ollama", "vanish_at"):
        pytest.skip("Ollama's whole answer just ends there, as an answer")
    status, code, _ = told(reply)
    assert status >= 500
    assert code


@BOTH
def test_an_engine_that_dies_in_a_stream(sdk: openai.OpenAI, engines: dict[str, StandIn], model: str) -> None:
    stream = sdk.chat.completions.create(model=f"{model}-dying", messages=orders(exit_at=3), stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts)
    assert caught.value.code == "upstream_incomplete"
    assert engines[f"{model}-dying"].wait(PATIENCE) == 9


@BOTH
def test_an_error_before_the_first_token_is_a_status(gateway: Gateway, model: str) -> None:
    """TGI says it in a stream that began with 200."""
    reply = chat(gateway, model, messages=orders(fail_prefill="boom"), stream=True)
    status, code, _ = told(reply)
    assert (status, code) == (500, {"tgi": "upstream_generation_failed", "ollama": "upstream_error"}[model])
    assert "boom" in reply.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_for_tgi(gateway: Gateway, stream: bool) -> None:
    messages = [{"role": "user", "content": "word " * 5000}]
    reply = chat(gateway, "tgi", messages=messages, stream=stream)
    assert told(reply) == (400, "context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_value_that_tgi_refuses(gateway: Gateway, stream: bool) -> None:
    reply = chat(gateway, "tgi", logprobs=True, top_logprobs=9, stream=stream)
    assert told(reply) == (400, "invalid_value", "top_logprobs")
