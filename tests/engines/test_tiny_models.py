"""The tiny models say what speech.py lays down, on a real llama-server."""

import json
from typing import Any

import httpx
import pytest

from tests.engines import speech
from tests.engines.fixtures import StartLlamaServer
from tests.engines.process import PATIENCE, ServerProcess
from tests.engines.tiny_gguf import TinyModel, build


def ask(server: ServerProcess, path: str, **body: object) -> Any:
    response = httpx.post(f"{server.base_url}{path}", json=body, timeout=PATIENCE, trust_env=False)
    return response.raise_for_status().json()


def chat(server: ServerProcess, text: str, **options: object) -> Any:
    answer = ask(server, "/v1/chat/completions", messages=[{"role": "user", "content": text}], **options)
    (choice,) = answer["choices"]
    return choice


def test_the_same_model_is_the_same_file() -> None:
    assert build(TinyModel()) == build(TinyModel())
    assert build(TinyModel()) != build(TinyModel(seed=1))


def test_words_that_occur_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="must all differ"):
        build(TinyModel(text="a stone is a stone"))


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="too many words"):
        build(TinyModel(text=" ".join(f"word{number}" for number in range(60))))


def test_it_says_its_text_and_ends(llama_server: ServerProcess) -> None:
    choice = chat(llama_server, "hi", temperature=2)
    assert choice["message"]["content"] == speech.TEXT
    assert choice["finish_reason"] == "stop"


def test_it_calls_a_tool_when_there_are_tools(llama_server: ServerProcess) -> None:
    tool = {"type": "function", "function": {"name": speech.TOOL_NAME, "parameters": {"type": "object"}}}
    choice = chat(llama_server, "hi", tools=[tool])
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == speech.TOOL_NAME
    assert json.loads(call["function"]["arguments"]) == json.loads(speech.TOOL_ARGUMENTS)


def test_it_goes_on_when_asked_to(llama_server: ServerProcess) -> None:
    choice = chat(llama_server, f"{speech.FOREVER_WORD}!", max_tokens=100)
    assert choice["finish_reason"] == "length"


def test_embeddings_differ(llama_embed: ServerProcess) -> None:
    data = ask(llama_embed, "/v1/embeddings", input=["hi", "a stone"])["data"]
    first, second = (entry["embedding"] for entry in data)
    assert first != second
    assert any(first)


def test_rerank_scores_differ(llama_rerank: ServerProcess) -> None:
    results = ask(llama_rerank, "/v1/rerank", query="hi", documents=["a", "hi there"])["results"]
    scores = {result["relevance_score"] for result in results}
    assert len(scores) == 2


def test_another_server_takes_its_own_arguments(start_llama: StartLlamaServer) -> None:
    server = start_llama("--api-key", "secret")
    assert httpx.get(f"{server.base_url}/v1/models", timeout=PATIENCE, trust_env=False).status_code == 401
