"""Requests that can't be answered: the client's exception, the error's members, and words that say what to do."""

from typing import Any

import httpx
import openai
import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess
from tests.engines.speech import TEXT
from tests.real.support import (
    ALIAS,
    CHAT,
    EMBED,
    HI,
    PUBLIC,
    RERANK,
    get,
    one_engine,
    post,
    refusal,
)


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(sdk: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model="team/none", messages=HI, stream=stream)
    told = refusal(refused.value.response)
    assert (told["code"], told["param"], told["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert "'team/none'" in told["message"]
    assert all(name in told["message"] for name in (PUBLIC, EMBED, RERANK))


def test_missing_model(served: Gateway, start_gateway: Any, llama_server: ServerProcess) -> None:
    told = refusal(post(served.base_url, "/v1/chat/completions", {"messages": HI}))
    assert (told["code"], told["param"]) == ("missing_required_parameter", "model")
    assert PUBLIC in told["message"]
    single = start_gateway(one_engine(llama_server.base_url)).wait_models(CHAT)
    answer = post(single.base_url, "/v1/chat/completions", {"messages": HI}).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == (CHAT, TEXT)
    embedding = post(single.base_url, "/v1/embeddings", {"input": "hi"})
    assert (embedding.status_code, refusal(embedding)["type"]) == (422, "CapabilityNotSupported")


def test_framework(sdk: openai.OpenAI) -> None:
    def ask(framework: str) -> Any:
        return sdk.chat.completions.create(model=PUBLIC, messages=HI, extra_body={"framework": framework})

    assert ask("llamacpp").choices[0].message.content == TEXT
    for framework, words in (
        ("vllm", "Remote base_url is not configured"),
        ("transformer", "Remote base_url is not configured"),
        ("tgi", "TGI base_url is not configured"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(framework)
        told = refusal(refused.value.response)
        assert told["message"].startswith(words)
        assert (told["type"], told["param"]) == ("RemoteEndpointError", "framework")
    with pytest.raises(openai.BadRequestError) as refused:
        ask("pytorch")
    told = refusal(refused.value.response)
    assert (told["code"], told["param"]) == ("invalid_value", "framework")
    assert "llamacpp" in told["message"]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "hot"}, {"max_tokens": "many"}, {"top_p": []}, {"messages": "hi"}, {"messages": [{"role": 5}]}],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_value(sdk: openai.OpenAI, wrong: dict[str, Any], stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(**({"model": PUBLIC, "messages": HI, "stream": stream} | wrong))
    told = refusal(refused.value.response)
    assert told["type"] == "invalid_request_error"
    (name,) = wrong
    assert name.rstrip("s") in told["message"] or "role" in told["message"]


def test_bodies_that_are_no_request(served: Gateway) -> None:
    def send(body: bytes) -> dict[str, Any]:
        answer = httpx.post(f"{served.v1}/chat/completions", content=body, timeout=PATIENCE, trust_env=False)
        assert answer.status_code == 400
        return refusal(answer)

    assert send(b'{"model": ')["code"] == "invalid_json"
    assert send(b"[1]")["code"] == "invalid_json"
    assert send(b"")["code"] == "invalid_json"
    assert send(b'{"model": "tiny-chat"}')["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_context_overflow(sdk: openai.OpenAI, stream: bool) -> None:
    long: Any = [{"role": "user", "content": "x" * 110_000}]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model=PUBLIC, messages=long, stream=stream)
    told = refusal(refused.value.response)
    assert (told["code"], told["param"]) == ("context_length_exceeded", "messages")
    assert "context" in told["message"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's word for translations
def test_what_a_chat_model_cannot_do(sdk: openai.OpenAI, served: Gateway) -> None:
    def unsupported(told: dict[str, Any]) -> bool:
        return (told["type"], told["code"]) == ("CapabilityNotSupported", "unsupported_endpoint")

    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.embeddings.create(model=PUBLIC, input="hi")
    assert unsupported(refusal(refused.value.response))
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.audio.speech.create(model=PUBLIC, input="hi", voice="alloy")
    told = refusal(refused.value.response)
    assert unsupported(told)
    assert "vLLM" in told["message"]  # an engine that can
    for create in (sdk.audio.transcriptions.create, sdk.audio.translations.create):
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            create(model=PUBLIC, file=("a.wav", b"RIFF"))
        assert unsupported(refusal(refused.value.response))
    for path, body in (
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/images/generations", {"prompt": "a"}),
        ("/v1/audio/transcriptions", {"audio_base64": "UklGRg=="}),
    ):
        answer = post(served.base_url, path, {"model": PUBLIC} | body)
        assert (answer.status_code, unsupported(refusal(answer))) == (422, True), path


def test_unknown_path_and_method(served: Gateway) -> None:
    answer = post(served.base_url, "/v1/chat/completion", {})
    assert (answer.status_code, refusal(answer)["code"]) == (404, "unknown_url")
    assert "/v1/chat/completions" in refusal(answer)["message"]
    wrong = get(f"{served.v1}/chat/completions")
    assert (wrong.status_code, refusal(wrong)["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_an_error_carries_the_requests_id(served: Gateway) -> None:
    answer = post(served.base_url, "/v1/chat/completions", {"model": "none", "messages": HI}, x_request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"


def test_too_many_tokens_asked_for_are_cut_by_the_engine_not_refused(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=ALIAS, messages=HI, max_tokens=10_000_000)
    assert answer.choices[0].message.content == TEXT
