"""Two engines for one model: the less busy one is asked, and one that is gone is stood in for."""

from collections.abc import Callable

import httpx
import pytest

from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess, wait_until
from tests.engines.speech import TEXT
from tests.real.support import CHAT, ENDLESS, HI, MANY, access_lines, busy, generating, post

PATH = "/v1/chat/completions"


@pytest.fixture
def pair(start_llama: StartLlamaServer) -> dict[str, ServerProcess]:
    return {name: start_llama("-np", "1", "--alias", CHAT) for name in ("left", "right")}


@pytest.fixture
def gateway(pair: dict[str, ServerProcess], start_gateway: Callable[..., Gateway]) -> Gateway:
    backends = ", ".join(f"{name}: {{base_url: {engine.base_url}}}" for name, engine in pair.items())
    return start_gateway(f"discovery: {{local: false}}\nbackends: {{{backends}}}\n").wait_models(CHAT)


def test_the_idle_one_is_asked(gateway: Gateway, pair: dict[str, ServerProcess]) -> None:
    assert gateway.models()[CHAT]["backends"] == ["left", "right"]
    endless = {"model": CHAT, "messages": ENDLESS, "max_tokens": MANY, "stream": True}
    with httpx.stream("POST", f"{gateway.base_url}{PATH}", json=endless, timeout=PATIENCE, trust_env=False) as running:
        pieces = running.iter_bytes()  # kept: without it the answer is closed
        next(pieces)
        wait_until(lambda: any(generating(engine)() for engine in pair.values()), "one of them generates")
        (taken,) = [name for name, engine in pair.items() if busy(engine)]
        for _ in range(4):
            answer = post(gateway.base_url, PATH, {"model": CHAT, "messages": HI})
            assert answer.json()["choices"][0]["message"]["content"] == TEXT
        assert busy(pair[taken]), "the first answer has ended: nothing was shown"
        idle = ({"left", "right"} - {taken}).pop()
        assert [line["backend"] for line in access_lines(gateway, PATH, 4)] == [idle] * 4


def test_equals_take_turns(gateway: Gateway) -> None:
    for _ in range(4):
        assert post(gateway.base_url, PATH, {"model": CHAT, "messages": HI}).status_code == 200
    served = [line["backend"] for line in access_lines(gateway, PATH, 4)]
    assert sorted(served) == ["left", "left", "right", "right"]


def test_one_is_gone(gateway: Gateway, pair: dict[str, ServerProcess]) -> None:
    pair["left"].stop()
    for stream in (False, True):
        for _ in range(3):  # no client notices
            answer = post(gateway.base_url, PATH, {"model": CHAT, "messages": HI, "stream": stream})
            assert answer.status_code == 200
            assert "error" not in answer.text
    assert {line["backend"] for line in access_lines(gateway, PATH, 6)} == {"right"}
