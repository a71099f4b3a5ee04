"""An engine that dies in the middle of an answer: the client is told inside the stream, and afterwards in plain words;
when it comes back on its port it is used again."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess, wait_until
from tests.engines.speech import TEXT
from tests.real.support import CHAT, ENDLESS, HI, MANY, access_lines, generating, get, one_engine, post, refusal, row

PATH = "/v1/chat/completions"


def kill(engine: ServerProcess) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    engine.wait(PATIENCE)


def test_killed_in_a_stream_and_started_again(
    start_llama: StartLlamaServer, start_gateway: Callable[..., Gateway]
) -> None:
    engine = start_llama("--alias", CHAT)
    gateway = start_gateway(one_engine(engine.base_url, "health: {interval: 0.5, down_after: 2}")).wait_models(CHAT)
    with openai.OpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        stream = client.chat.completions.create(model=CHAT, messages=ENDLESS, max_tokens=MANY, stream=True)
        for _, _chunk in zip(range(5), stream, strict=False):
            pass
        kill(engine)
        with pytest.raises(openai.APIError) as broken:
            for _ in stream:
                pass
        assert not isinstance(broken.value, openai.APIConnectionError)  # told, not merely cut
        assert broken.value.code == "upstream_incomplete"
        assert "'only'" in broken.value.message

        for asked in (False, True):
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(model=CHAT, messages=HI, stream=asked)
            told = refusal(refused.value.response)
            assert refused.value.status_code == 503
            assert (told["code"], told["type"]) == ("backend_unavailable", "RemoteEndpointError")
            assert "'only' can't be reached" in told["message"]
            assert "running" in told["message"]
            assert refused.value.response.headers["retry-after"] == "5"
        wait_until(lambda: row(gateway)["state"] == "down", "the probe sees it too")
        assert gateway.models()[CHAT]["state"] == "down"
        assert get(f"{gateway.base_url}/readyz").status_code == 503

        start_llama("--alias", CHAT, port=engine.port)
        answer = client.chat.completions.create(model=CHAT, messages=HI)  # without waiting for a probe
        assert answer.choices[0].message.content == TEXT
        wait_until(lambda: row(gateway)["state"] == "ready", "the probe sees it again")
    (first, *_) = access_lines(gateway, PATH, 4)
    assert (first["status"], first["code"]) == (200, "upstream_incomplete")
    assert "Traceback" not in gateway.log_text()


def test_killed_in_a_plain_answer(start_llama: StartLlamaServer, start_gateway: Callable[..., Gateway]) -> None:
    engine = start_llama("--alias", CHAT)
    gateway = start_gateway(one_engine(engine.base_url)).wait_models(CHAT)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(post, gateway.base_url, PATH, {"model": CHAT, "messages": ENDLESS, "max_tokens": MANY})
        wait_until(generating(engine), "the engine generates")
        kill(engine)
        refused = asked.result(PATIENCE)
    told = refusal(refused)
    assert (refused.status_code, told["code"]) == (502, "upstream_incomplete")
    assert "'only' broke off" in told["message"]
    assert "Traceback" not in gateway.log_text()
