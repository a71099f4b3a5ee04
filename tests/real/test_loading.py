"""An engine that takes seconds to load its model is loading, not down: the gateway says so and then just works."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.engines.door import Door, never_loaded
from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import ASK, PATIENCE, wait_until
from tests.engines.speech import TEXT
from tests.real.support import CHAT, HI, get, one_engine, post, refusal, row


def is_loading(engine: Door) -> bool:
    try:
        return httpx.get(f"{engine.base_url}/health", timeout=ASK, trust_env=False).status_code == 503
    except httpx.TransportError:
        return False


@pytest.fixture
def loading(start_llama: StartLlamaServer, tmp_path: Path) -> Iterator[Door]:
    with Door(start_llama(*never_loaded(tmp_path), "--alias", CHAT, wait=False)) as door:
        wait_until(lambda: is_loading(door), "llama-server answers that it is loading")
        yield door


def test_a_model_that_is_loading(
    loading: Door, start_llama: StartLlamaServer, start_gateway: Callable[..., Gateway]
) -> None:
    named = f"models: {{tiny: {{replicas: [{{backend: only, model: {CHAT}}}]}}}}"
    gateway = start_gateway(one_engine(loading.base_url, named))
    unnamed = start_gateway(one_engine(loading.base_url))
    for stream in (False, True):
        refused = post(gateway.base_url, "/v1/chat/completions", {"model": "tiny", "messages": HI, "stream": stream})
        told = refusal(refused)
        assert (refused.status_code, told["code"], told["type"]) == (503, "model_loading", "server_error")
        assert refused.headers["retry-after"] == "5"
        assert "oading" in told["message"]
    wait_until(lambda: row(gateway)["state"] == "loading", "the probe sees that it loads")
    assert {name: entry["state"] for name, entry in gateway.models().items()} == {"tiny": "loading"}
    assert get(f"{gateway.base_url}/readyz").status_code == 503
    assert get(f"{gateway.base_url}/livez").status_code == 200

    wait_until(lambda: row(unnamed)["state"] == "loading", "the probe sees that it loads")
    assert unnamed.models() == {}
    for body in ({"model": CHAT, "messages": HI}, {"messages": HI}):  # what it will have is not known yet
        refused = post(unnamed.base_url, "/v1/chat/completions", body)
        assert (refused.status_code, refusal(refused)["code"]) == (503, "model_loading")

    loading.lead_to(start_llama("--alias", CHAT))
    gateway.wait_models("tiny", CHAT)
    with openai.OpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        answer = client.chat.completions.create(model="tiny", messages=HI)
    assert answer.choices[0].message.content == TEXT
    assert (row(gateway)["state"], gateway.models()["tiny"]["state"]) == ("ready", "ready")
    assert get(f"{gateway.base_url}/readyz").status_code == 200
    unnamed.wait_models(CHAT)
    answered = post(unnamed.base_url, "/v1/chat/completions", {"messages": HI})
    assert answered.json()["choices"][0]["message"]["content"] == TEXT
