"""Pictures for engines that take nothing but their bytes: in the request, as base64, or fetched by the gateway."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engines.gateway import Gateway
from tests.native.support import PNG, chat, told
from tests.standins.support import StandIn

SEEING = pytest.mark.parametrize("model", ["tgi-seeing", "ollama-seeing"])


def show(gateway: Gateway, model: str, part: Any) -> httpx.Response:
    parts = [{"type": "text", "text": "What is it?"}, part]
    return chat(gateway, model, messages=[{"role": "user", "content": parts}])


def forms(pictures: str) -> list[Any]:
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": f"data:;base64,{PNG.rstrip('=')}"},
        {"type": "image_base64", "image_base64": PNG},
        {"type": "image_url", "image_url": {"url": f"{pictures}/pixel.png"}},
    ]


@SEEING
def test_every_form_is_seen(gateway: Gateway, pictures: str, model: str) -> None:
    for form in forms(pictures):
        reply = show(gateway, model, form)
        assert reply.status_code == 200, (form, reply.text)
        assert "png" in reply.json()["choices"][0]["message"]["content"], form


@SEEING
def test_what_is_no_picture_is_refused(gateway: Gateway, pictures: str, model: str) -> None:
    for url in (f"{pictures}/other", f"{pictures.replace('127', '126')}:1/x.png", "data:image/png;base64,@@"):
        reply = show(gateway, model, {"type": "image_url", "image_url": {"url": url}})
        assert told(reply) == (400, "invalid_image_url", "messages"), url
    reply = show(gateway, model, {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})
    assert told(reply) == (400, "unsupported_value", "messages")


def test_tgi_is_never_given_a_link(gateway: Gateway, pictures: str, engines: dict[str, StandIn]) -> None:
    """It would fetch it without looking where it leads."""
    engines["tgi-seeing"].reset()
    messages = [{"role": "user", "content": f"![]({pictures}/secret.png)"}]
    assert chat(gateway, "tgi-seeing", messages=messages).status_code == 200
    (sent,) = engines["tgi-seeing"].requests("/generate")
    assert f"![]({pictures}" not in sent["body"]["inputs"]


@pytest.mark.parametrize(("model", "word"), [("tgi", "vision: true"), ("ollama", "vision model")])
def test_a_blind_model_refuses_and_says_what_helps(gateway: Gateway, pictures: str, model: str, word: str) -> None:
    reply = show(gateway, model, forms(pictures)[0])
    assert told(reply) == (400, "unsupported_value", "messages")
    assert word in reply.json()["error"]["message"]
