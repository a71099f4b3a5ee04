"""What the captures don't show of the stand-ins: other versions, queues, loading, crashes, keep-alive comments."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.process import PATIENCE, wait_until
from tests.engines.speech import TEXT
from tests.standins.support import ROOT, StandIn

RECURSIVE = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def started(kind: str, *options: str) -> StandIn:
        running = StandIn(kind, tmp_path_factory.mktemp(kind), options)
        request.addfinalizer(running.stop)
        return running

    return started


def post(standin: StandIn, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(standin.base_url + path, json=body, timeout=PATIENCE, trust_env=False)


def get(standin: StandIn, path: str) -> httpx.Response:
    return httpx.get(standin.base_url + path, timeout=PATIENCE, trust_env=False)


def test_tgi_dies_of_a_recursive_schema(start: Any) -> None:
    standin = start("tgi")
    grammar = {"type": "json", "value": RECURSIVE}
    with pytest.raises(httpx.TransportError):
        post(standin, "/generate", {"inputs": "x", "parameters": {"grammar": grammar}})
    wait_until(lambda: standin.returncode is not None, "it died")
    assert "stack overflow" in standin.log_text()


def test_old_tgi(start: Any) -> None:
    standin = start("tgi", "--version", "2.0.4")
    stream = post(standin, "/generate_stream", {"inputs": "x", "parameters": {"details": True, "max_new_tokens": 2}})
    first, last = [line for line in stream.text.split("\n") if line]
    assert first.startswith('data:{"index":1')
    assert "input_length" not in json.loads(last.removeprefix("data:"))["details"]
    assert "max_input_length" in get(standin, "/info").json()
    assert post(standin, "/chat_tokenize", {"messages": []}).status_code == 404
    assert get(standin, "/v1/models").status_code == 404
    forever = post(standin, "/generate", {"inputs": "forever", "parameters": {"details": True}}).json()
    assert forever["details"]["generated_tokens"] == 100
    tools = {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER]}
    called = post(standin, "/v1/chat/completions", tools).json()["choices"][0]["message"]["tool_calls"][0]
    assert called["function"]["arguments"] == {"city": "Bern"}
    failed = post(standin, "/v1/chat/completions", {"messages": [], "top_p": 1, "stream": True}).text
    assert "error_type" in failed
    assert "[DONE]" not in failed


def test_tgi_chat_with_tools(start: Any) -> None:
    standin = start("tgi")
    messages = [{"role": "user", "content": "Weather?"}]
    message = post(standin, "/v1/chat/completions", {"messages": messages, "tools": [WEATHER]}).json()["choices"][0]
    call = message["message"]["tool_calls"][0]
    assert call["function"] == {"description": None, "name": "get_weather", "arguments": '{"city":"Bern"}'}
    answered = [*messages, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "12"}]
    again = post(standin, "/v1/chat/completions", {"messages": answered, "tools": [WEATHER]}).json()["choices"][0]
    assert again["message"]["content"] == TEXT
    streamed = post(standin, "/v1/chat/completions", {"messages": answered, "tools": [WEATHER], "stream": True}).text
    assert '"content":" upon"' in streamed


def test_tgi_sends_comments_into_a_silence(start: Any) -> None:
    standin = start("tgi", "--keep-alive", "0.05")
    text = post(standin, "/generate_stream", {"inputs": '@@{"first_delay": 0.2}@@'}).text
    assert text.startswith(":\n\n")


def _vector_calls() -> list[Any]:
    """Every call of the contract's vectors that a real router took."""
    calls = []
    for file in ("tgi_chat", "tgi_chat_stream", "tgi_completions"):
        for case in json.loads((ROOT / "tests" / "vectors" / f"{file}.json").read_text())["cases"]:
            main = {"request": case.get("upstream_request"), "response": case.get("upstream_response")}
            for number, call in enumerate([*case.get("pre_calls", ()), *case.get("upstream_calls", ()), main]):
                request, response = (call.get(key) or call.get(f"upstream_{key}") for key in ("request", "response"))
                if request and response and response.get("status", 200) == 200:
                    calls.append(pytest.param(request, id=f"{file}-{case.get('id', case.get('name'))}-{number}"))
    return calls


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn("tgi", tmp_path_factory.mktemp("vectors"), ("--max-best-of", "4")) as running:
        yield running


@pytest.mark.parametrize("call", _vector_calls())
def test_tgi_takes_what_the_vectors_send(call: dict[str, Any], router: StandIn) -> None:
    answer = post(router, call["path"], call["body"])
    assert answer.status_code == 200, answer.text
    assert "error_type" not in answer.text


def test_tgi_metrics_appear_with_the_first_request(start: Any) -> None:
    standin = start("tgi")
    assert get(standin, "/metrics").text == ""
    post(standin, "/generate", {"inputs": "x"})
    assert "tgi_batch_current_size 0\n" in get(standin, "/metrics").text


def test_very_old_ollama(start: Any) -> None:
    standin = start("ollama", "--version", "0.2.0")
    assert post(standin, "/api/embed", {"model": "embed", "input": "a"}).text == "404 page not found"
    assert len(post(standin, "/api/embeddings", {"model": "embed", "prompt": "a"}).json()["embedding"]) == 64
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": False}
    ignored = post(standin, "/api/chat", body | {"tools": [WEATHER], "think": "high", "logprobs": True}).json()
    assert ignored["message"] == {"role": "assistant", "content": TEXT}
    assert "capabilities" not in post(standin, "/api/show", {"model": "tiny"}).json()


def test_ollama_loads_in_silence_and_its_queue_is_full(start: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    standin = start("ollama", "--load-delay", "0.4", "--load-gate", str(gate), "--max-queue", "1")
    answers: list[httpx.Response] = []

    def ask(model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": False}
        answers.append(post(standin, "/api/chat", body))

    threads = [threading.Thread(target=ask, args=(model,)) for model in ("tiny", "json", "helper")]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(standin.running()) == 2 and answers, "two wait, and one was turned away")
    gate.touch()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
    full = next(answer for answer in answers if answer.status_code == 503)
    assert full.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"
    assert all(answer.json()["load_duration"] > 4e8 for answer in answers if answer.is_success)


def test_ollama_reloads_for_another_context_and_unloads_when_told(start: Any) -> None:
    standin = start("ollama", "--load-delay", "0.05")

    def load(**more: Any) -> int:
        duration: int = post(standin, "/api/chat", body | more).json()["load_duration"]
        return duration

    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": False}
    loads = [load(), load(), load(options={"num_ctx": 512}), load(options={"num_ctx": 512}, shift=False)]
    assert [each > 10**8 for each in loads] == [True, False, True, True]
    assert [each["context_length"] for each in get(standin, "/api/ps").json()["models"]] == [512]
    load(keep_alive=0)
    assert get(standin, "/api/ps").json()["models"] == []
