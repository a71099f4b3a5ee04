"""What these tests share: which engines stand behind the gateway under which names, and how answers are read.

Public names are the keys of `MODELS`; what each stand-in says is tests/standins' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE
from tests.standins.support import StandIn

HI: Any = [{"role": "user", "content": "hi"}]
ENDLESS: Any = [{"role": "user", "content": "forever, please"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# Stand-ins: kind and command line.
ENGINES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tgi": ("tgi", ()),
    "tgi-seeing": ("tgi", ("--vision",)),
    "tgi-2.0.4": ("tgi", ("--version", "2.0.4")),
    "tgi-dying": ("tgi", ()),
    "ollama": ("ollama", ()),
    "ollama-0.12.5": ("ollama", ("--version", "0.12.5")),
    "ollama-0.2.0": ("ollama", ("--version", "0.2.0")),
    "ollama-dying": ("ollama", ()),
}
# Backends that need more than a kind and a URL: the stand-in and the rest of the settings.
BACKENDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "tgi-native": ("tgi", {"chat_mode": "native"}),
    "tgi-openai": ("tgi", {"chat_mode": "openai"}),
    "tgi-strict": ("tgi", {"chat_mode": "native", "strict_params": True}),
    "tgi-seeing": ("tgi-seeing", {"options": {"vision": True}}),
    "ollama-strict": ("ollama", {"strict_params": True}),
    "ollama-options": ("ollama", {"options": {"num_ctx": 2048, "keep_alive": "9m"}}),
}
# Public name -> backend and the engine's own name.
MODELS: Mapping[str, tuple[str, str]] = {
    "tgi": ("tgi", "any"),
    "tgi-native": ("tgi-native", "any"),
    "tgi-openai": ("tgi-openai", "any"),
    "tgi-strict": ("tgi-strict", "any"),
    "tgi-seeing": ("tgi-seeing", "any"),
    "tgi-old": ("tgi-2.0.4", "any"),
    "tgi-dying": ("tgi-dying", "any"),
    "ollama": ("ollama", "helper"),
    "ollama-gguf": ("ollama", "jhelper"),
    "ollama-thinking": ("ollama", "gthink"),
    "ollama-seeing": ("ollama", "gvision"),
    "ollama-insert": ("ollama", "ginsert"),
    "ollama-embed": ("ollama", "embed"),
    "ollama-strict": ("ollama-strict", "helper"),
    "ollama-options": ("ollama-options", "helper"),
    "ollama-old": ("ollama-0.12.5", "tiny"),
    "ollama-oldest": ("ollama-0.2.0", "tiny"),
    "ollama-oldest-embed": ("ollama-0.2.0", "embed"),
    "ollama-dying": ("ollama-dying", "helper"),
}


def settings(engines: Mapping[str, StandIn], image_port: int) -> str:
    """The gateway's YAML (JSON is YAML)."""
    backends: dict[str, Any] = {
        name: {"kind": ENGINES[name][0], "base_url": engine.base_url} for name, engine in engines.items()
    }
    for name, (engine, more) in BACKENDS.items():
        backends[name] = {"kind": ENGINES[engine][0], "base_url": engines[engine].base_url, **more}
    models = {public: {"replicas": [{"backend": name, "model": own}]} for public, (name, own) in MODELS.items()}
    images = {"allow_private": True, "ports": [image_port]}
    return json.dumps({"discovery": {"local": False}, "backends": backends, "models": models, "images": images})


def post(gateway: Gateway, path: str, body: Mapping[str, Any]) -> httpx.Response:
    return httpx.post(f"{gateway.v1}{path}", json=body, timeout=PATIENCE, trust_env=False)


def chat(gateway: Gateway, model: str, **more: Any) -> httpx.Response:
    return post(gateway, "/chat/completions", {"model": model, "messages": HI} | more)


def told(response: httpx.Response) -> tuple[int, Any, Any]:
    """Status, code and param of an error."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code, error["code"], error["param"]


def events(response: httpx.Response, text: str | None = None) -> list[Any]:
    """A stream's events: objects, and the closing word as it is. `text`: what was read of it by hand."""
    text = response.text if text is None else text
    assert response.headers["content-type"].startswith("text/event-stream"), text
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) if one != "[DONE]" else one for one in data]


def content(found: list[Any]) -> str:
    """The text of a chat's stream."""
    choices = [choice for event in found if event != "[DONE]" for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
