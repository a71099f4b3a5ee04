"""What an engine lacks: dropped and said, refused where that is wanted, or answered with who can; old versions too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.gateway import Gateway
from tests.engines.speech import TEXT
from tests.native.support import HI, PNG, TOOL, chat, content, events, post, told
from tests.standins.support import StandIn


def test_what_is_dropped_is_said(gateway: Gateway) -> None:
    lost = {"presence_penalty": 1, "logit_bias": {"5": 1}, "min_p": 0.1, "top_k": 5}
    for stream in (False, True):
        reply = chat(gateway, "tgi", **lost, stream=stream)
        names = set(reply.headers["x-illm-dropped-params"].split(", "))
        assert names == {"presence_penalty", "logit_bias", "min_p"}
    reply = chat(gateway, "ollama", **lost)
    assert reply.headers["x-illm-dropped-params"] == "logit_bias"
    assert "x-illm-dropped-params" not in chat(gateway, "tgi", presence_penalty=0, logit_bias={}).headers


@pytest.mark.parametrize(("model", "name"), [("tgi-strict", "presence_penalty"), ("ollama-strict", "logit_bias")])
def test_strict_backends_refuse_it(gateway: Gateway, model: str, name: str) -> None:
    value: Any = {"presence_penalty": 1, "logit_bias": {"5": 1}}[name]
    assert told(chat(gateway, model, **{name: value})) == (400, "unsupported_parameter", name)
    assert chat(gateway, model).status_code == 200


LACKING = [
    ("tgi", "/embeddings", {"input": "hi"}, "Ollama"),
    ("tgi", "/rerank", {"query": "q", "documents": ["d"]}, "vLLM"),
    ("ollama", "/rerank", {"query": "q", "documents": ["d"]}, "Infinity"),
    ("ollama", "/audio/transcriptions", {"audio_base64": "AAAA"}, "vLLM"),
]


@pytest.mark.parametrize(("model", "path", "body", "who"), LACKING)
def test_a_missing_capability_says_who_has_it(
    gateway: Gateway, model: str, path: str, body: dict[str, Any], who: str
) -> None:
    reply = post(gateway, path, {"model": model} | body)
    assert told(reply) == (422, "unsupported_endpoint", "model")
    assert reply.json()["error"]["type"] == "CapabilityNotSupported"
    assert who in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("model", "path", "body"),
    [
        ("ollama", "/embeddings", {"input": "hi"}),
        ("ollama-embed", "/chat/completions", {"messages": HI}),
        ("ollama", "/completions", {"prompt": "hi", "suffix": "end"}),
    ],
)
def test_a_model_that_lacks_it_is_refused_in_the_engines_words(
    gateway: Gateway, model: str, path: str, body: dict[str, Any]
) -> None:
    assert told(post(gateway, path, {"model": model} | body)) == (422, "unsupported_endpoint", "model")


# -- old versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ollama-old", "ollama-oldest"])
def test_old_ollamas_chat(gateway: Gateway, model: str) -> None:
    assert chat(gateway, model).json()["choices"][0]["message"]["content"] == TEXT
    assert content(events(chat(gateway, model, stream=True))) == TEXT
    reply = chat(gateway, model, logprobs=True)
    assert reply.json()["choices"][0]["logprobs"] is None


def test_an_error_that_an_old_ollama_sends_with_200_is_a_status(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": '@@{"fail_prefill": "boom"}@@'}]
    reply = chat(gateway, "ollama-old", messages=messages, stream=True)
    assert told(reply)[:2] == (500, "upstream_error")


def test_the_oldest_ollama_embeds_one_by_one(gateway: Gateway, engines: dict[str, StandIn]) -> None:
    engine = engines["ollama-0.2.0"]
    engine.reset()
    for _ in range(2):
        reply = post(gateway, "/embeddings", {"model": "ollama-oldest-embed", "input": ["a", "b"]})
        assert [one["index"] for one in reply.json()["data"]] == [0, 1]
    paths = [one["path"] for one in engine.requests() if one["path"].startswith("/api/embed")]
    assert paths.count("/api/embed") <= 1  # asked once at most, then remembered
    assert paths.count("/api/embeddings") == 4


def test_pictures_for_an_old_ollama(gateway: Gateway) -> None:
    """It would answer without a look at them."""
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
    reply = chat(gateway, "ollama-old", messages=[{"role": "user", "content": parts}])
    assert told(reply) == (400, "unsupported_value", "messages")


def test_an_old_tgi_has_no_template(gateway: Gateway) -> None:
    reply = chat(gateway, "tgi-old")
    assert told(reply) == (400, "chat_template_unavailable", "messages")
    assert "chat_template" in reply.json()["error"]["message"]
    tools = chat(gateway, "tgi-old", tools=[TOOL])
    assert tools.status_code == 400


def test_an_old_tgi_completes_and_is_told_a_limit(gateway: Gateway, engines: dict[str, StandIn]) -> None:
    """Without one it would stop after a hundred tokens."""
    engines["tgi-2.0.4"].reset()
    for stream in (False, True):
        reply = post(gateway, "/completions", {"model": "tgi-old", "prompt": "hi", "stream": stream})
        assert reply.status_code == 200, reply.text
    sent = [one["body"]["parameters"] for one in engines["tgi-2.0.4"].requests() if "generate" in one["path"]]
    assert [one["max_new_tokens"] for one in sent] == [4096, 4096]
