"""Good answers through the official clients: text, streams, schemas, fan-out, completions, embeddings, thinking."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.engines.gateway import Gateway
from tests.engines.speech import TEXT
from tests.native.support import ENDLESS, HI, chat, events, post
from tests.standins.support import StandIn

BOTH = pytest.mark.parametrize("model", ["tgi", "ollama", "ollama-gguf"])
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
}


@BOTH
def test_chat(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(model=model, messages=HI)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(TEXT.split()) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@BOTH
def test_stream(sdk: openai.OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(model=model, messages=HI, stream_options={"include_usage": True}) as stream:
        final = stream.until_done().get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].finish_reason == "stop"
    assert final.model == model
    assert final.usage is not None
    assert final.usage.completion_tokens == len(TEXT.split()) + 1


@BOTH
def test_a_limit_is_kept(gateway: Gateway, model: str) -> None:
    for stream in (False, True):
        reply = chat(gateway, model, messages=ENDLESS, max_tokens=3, stream=stream)
        choices = [one["choices"][0] for one in events(reply)[:-1]] if stream else reply.json()["choices"]
        assert choices[-1]["finish_reason"] == "length"


def test_a_limit_above_tgis_segment_is_kept(gateway: Gateway, tgi: StandIn) -> None:
    """TGI itself would go on to the next multiple of 1024."""
    found = events(
        chat(gateway, "tgi", messages=ENDLESS, max_tokens=1030, stream=True, stream_options={"include_usage": True})
    )
    assert found[-1] == "[DONE]"
    assert found[-2]["usage"]["completion_tokens"] == 1030
    assert found[-3]["choices"][0]["finish_reason"] == "length"
    assert len(tgi.wait_closed()) == 1


@BOTH
def test_langchain(gateway: Gateway, model: str) -> None:
    client = ChatOpenAI(model=model, base_url=gateway.v1, api_key=SecretStr("unused"), max_retries=0)
    assert client.invoke("hi").content == TEXT
    assert "".join(str(piece.content) for piece in client.stream("hi")) == TEXT


@BOTH
def test_json_schema(sdk: openai.OpenAI, model: str) -> None:
    create = sdk.chat.completions.create
    answer = create(model=model, messages=HI, response_format=SCHEMA)
    assert json.loads(answer.choices[0].message.content or "") == {"ok": True}
    pieces = create(model=model, messages=HI, response_format=SCHEMA, stream=True)
    assert json.loads("".join(piece.choices[0].delta.content or "" for piece in pieces)) == {"ok": True}


@pytest.mark.parametrize("model", ["tgi", "tgi-openai", "ollama", "ollama-gguf"])
def test_two_choices(gateway: Gateway, sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(model=model, messages=HI, n=2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * (len(TEXT.split()) + 1)
    found = events(chat(gateway, model, n=2, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for choice in (choice for event in found[:-1] for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [TEXT, TEXT]
    assert found.count("[DONE]") == 1
    assert sum(bool(event.get("usage")) for event in found[:-1]) == 1


def test_more_prompts_than_tgi_takes(sdk: openai.OpenAI, gateway: Gateway) -> None:
    """Its own /v1 takes four in one request."""
    asked = list("abcdef")
    answer = sdk.completions.create(model="tgi-openai", prompt=asked, echo=True)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text[0] for choice in answer.choices] == asked
    found = events(post(gateway, "/completions", {"model": "tgi-openai", "prompt": asked, "stream": True}))
    assert {choice["index"] for event in found[:-1] for choice in event["choices"]} == set(range(6))
    assert found.count("[DONE]") == 1
    assert found[-1] == "[DONE]"


def test_the_seeds_of_a_fan_out_differ(gateway: Gateway, tgi: StandIn, ollama: StandIn) -> None:
    chat(gateway, "tgi-native", n=2, seed=7)
    assert sorted(one["body"]["parameters"]["seed"] for one in tgi.requests("/generate")) == [7, 8]
    chat(gateway, "ollama", n=2, seed=7)
    assert sorted(one["body"]["options"]["seed"] for one in ollama.requests("/api/chat")) == [7, 8]


@pytest.mark.parametrize("model", ["tgi", "ollama"])
def test_completions(gateway: Gateway, sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.completions.create(model=model, prompt=["one", "two"], echo=True)
    assert [choice.text for choice in answer.choices] == ["one" + TEXT, "two" + TEXT]
    assert [choice.index for choice in answer.choices] == [0, 1]
    body = {"model": model, "prompt": ["one", "two"], "stream": True, "echo": True}
    texts = ["", ""]
    found = events(post(gateway, "/completions", body))
    for choice in (choice for event in found[:-1] for choice in event["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["one" + TEXT, "two" + TEXT]
    assert found.count("[DONE]") == 1


def test_best_of_is_tgis(sdk: openai.OpenAI, tgi: StandIn) -> None:
    answer = sdk.completions.create(model="tgi", prompt="hi", best_of=2)
    assert [choice.text for choice in answer.choices] == [TEXT]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * (len(TEXT.split()) + 1)
    (asked,) = tgi.requests("/generate")
    assert asked["body"]["parameters"]["best_of"] == 2


def test_a_suffix_reaches_ollama(sdk: openai.OpenAI, ollama: StandIn) -> None:
    assert sdk.completions.create(model="ollama-insert", prompt="hi", suffix="end").choices[0].text == TEXT
    (asked,) = ollama.requests("/api/generate")
    assert asked["body"]["suffix"] == "end"
    assert "raw" not in asked["body"]


@pytest.mark.parametrize("model", ["ollama-embed", "ollama-oldest-embed"])
def test_embeddings(gateway: Gateway, sdk: openai.OpenAI, model: str) -> None:
    """The SDK asks for base64 by itself."""
    texts = ["hi there", "a stone bridge"]
    packed = [one.embedding for one in sdk.embeddings.create(model=model, input=texts).data]
    floats = sdk.embeddings.create(model=model, input=texts, encoding_format="float").data
    assert packed == [pytest.approx(one.embedding, abs=1e-6) for one in floats]
    assert packed[0] != packed[1]
    assert sum(x * x for x in packed[0]) == pytest.approx(1, abs=1e-3)
    short = sdk.embeddings.create(model=model, input="hi there", dimensions=8).data[0].embedding
    assert len(short) == 8
    assert sum(x * x for x in short) == pytest.approx(1, abs=1e-3)
    client = OpenAIEmbeddings(
        model=model, base_url=gateway.v1, api_key=SecretStr("unused"), check_embedding_ctx_length=False
    )
    assert client.embed_query("hi there") == pytest.approx(packed[0], abs=1e-6)


def test_thinking(sdk: openai.OpenAI, ollama: StandIn) -> None:
    create = sdk.chat.completions.create
    message: Any = create(model="ollama-thinking", messages=HI).choices[0].message
    assert (message.reasoning_content.strip(), message.content) == ("Let me ponder colours", "Blue it is .")
    deltas: list[Any] = [one.choices[0].delta for one in create(model="ollama-thinking", messages=HI, stream=True)]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts.strip() == "Let me ponder colours"
    assert "".join(delta.content or "" for delta in deltas) == "Blue it is ."
    ollama.reset()
    quiet = create(model="ollama-thinking", messages=HI, reasoning_effort="none").choices[0].message
    assert not hasattr(quiet, "reasoning_content")
    assert ollama.requests("/api/chat")[0]["body"]["think"] is False


def test_options_of_the_backend_and_of_the_request(gateway: Gateway, ollama: StandIn) -> None:
    chat(gateway, "ollama-options")
    chat(gateway, "ollama-options", num_ctx=1024, keep_alive=60, options={"repeat_last_n": 5}, top_k=-1)
    first, second = (one["body"] for one in ollama.requests("/api/chat"))
    assert (first["options"], first["keep_alive"]) == ({"num_ctx": 2048}, "9m")
    assert second["options"] == {"num_ctx": 1024, "repeat_last_n": 5, "top_k": 0}
    assert second["keep_alive"] == 60
