"""A page in a browser that calls the gateway, and keys: who may ask, and that no key is ever told to anybody."""

from collections.abc import Callable, Iterator

import anthropic
import httpx
import openai
import pytest

from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import ServerProcess
from tests.engines.speech import TEXT
from tests.real.support import CHAT, HI, PUBLIC, access_lines, get, one_engine, post, refusal

PAGE = "http://localhost:5173"
ASKED = "authorization,content-type,x-stainless-lang,x-stainless-os"
ONE, TWO, WRONG, UPSTREAM = "sk-first-6b1f", "sk-second-93aa", "sk-wrong-c0de", "sk-engine-77e0"


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": ASKED}
    return httpx.options(url, headers=headers, trust_env=False)


@pytest.fixture(scope="module")
def locked(llama_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with two keys."""
    config = one_engine(llama_server.base_url, f"server: {{api_keys: [{ONE}, {TWO}]}}")
    with Gateway(config, tmp_path_factory.mktemp("locked")) as gateway:
        yield gateway


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/embeddings"])
def test_preflight_and_the_request_after_it(locked: Gateway, path: str) -> None:
    answer = preflight(f"{locked.base_url}{path}", PAGE)  # browsers send no key with it
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert set(ASKED.split(",")) <= set(answer.headers["access-control-allow-headers"].replace(" ", "").split(","))


def test_answers_to_a_page(served: Gateway) -> None:
    for stream in (False, True):
        body = {"model": PUBLIC, "messages": HI, "stream": stream}
        answer = post(served.base_url, "/v1/chat/completions", body, origin=PAGE)
        assert answer.status_code == 200
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    refused = post(served.base_url, "/v1/chat/completions", {"model": "none", "messages": HI}, origin=PAGE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE)


def test_another_page_may_not_read(served: Gateway) -> None:
    foreign = "https://elsewhere.example"
    assert "access-control-allow-origin" not in preflight(f"{served.v1}/chat/completions", foreign).headers
    answer = post(served.base_url, "/v1/chat/completions", {"model": PUBLIC, "messages": HI}, origin=foreign)
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_can_read_that_its_key_is_wrong(locked: Gateway) -> None:
    answer = post(locked.base_url, "/v1/chat/completions", {}, origin=PAGE, authorization=f"Bearer {WRONG}")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, PAGE)


def test_keys(locked: Gateway) -> None:
    for key in (ONE, TWO):
        with openai.OpenAI(base_url=locked.v1, api_key=key, max_retries=0) as client:
            assert client.chat.completions.create(model=CHAT, messages=HI).choices[0].message.content == TEXT
            assert [model.id for model in client.models.list()] == [CHAT]
        with anthropic.Anthropic(base_url=locked.base_url, api_key=key, max_retries=0) as claude:  # x-api-key
            assert claude.messages.create(model=CHAT, messages=HI, max_tokens=50).stop_reason == "end_turn"
    with (
        openai.OpenAI(base_url=locked.v1, api_key=WRONG, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.chat.completions.create(model=CHAT, messages=HI)
    told = refusal(refused.value.response)
    assert told["code"] == "invalid_api_key"
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/chat/completions", "/v1/models", "/metrics", "/v1/none"):
        answer = get(f"{locked.base_url}{path}")
        assert (answer.status_code, refusal(answer)["code"]) == (401, "invalid_api_key"), path
    for path in ("/healthz", "/livez", "/readyz"):
        assert get(f"{locked.base_url}{path}").status_code == 200
    assert {line["status"] for line in access_lines(locked, "/v1/messages", 2)} == {200}
    assert_untold(locked, ONE, TWO, WRONG)


def assert_untold(gateway: Gateway, *keys: str) -> None:
    log = gateway.log_text()
    assert '"status"' in log
    assert not [key for key in keys if key in log]


def test_the_backends_own_key(start_llama: StartLlamaServer, start_gateway: Callable[..., Gateway]) -> None:
    engine = start_llama("--api-key", UPSTREAM, "--alias", CHAT)
    known = f"base_url: {engine.base_url}, model: m"
    backend = f"discovery: {{local: false}}\nbackends: {{only: {{{known}, api_key: %s}}}}\n"
    body = {"model": "m", "messages": HI}
    right = start_gateway(backend % UPSTREAM)
    answer = post(right.base_url, "/v1/chat/completions", body, authorization=f"Bearer {ONE}")
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    wrong = start_gateway(backend % WRONG)
    refused = post(wrong.base_url, "/v1/chat/completions", body, authorization=f"Bearer {UPSTREAM}")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (502, "false")
    told = refusal(refused)
    assert told["code"] == "upstream_auth_failed"
    assert "api_key" in told["message"]
    for gateway in (right, wrong):
        access_lines(gateway, "/v1/chat/completions")
        assert_untold(gateway, UPSTREAM, WRONG, ONE)
        health = get(f"{gateway.base_url}/healthz").text
        assert not [key for key in (UPSTREAM, WRONG, ONE) if key in health + refused.text]
