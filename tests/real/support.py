"""What the tests on a real llama-server share: names, the words that the model says, and small questions.

The models are those of tests/engines: the chat model's text, usage and tool call are known beforehand (speech.py).
"""

import json
from collections.abc import Callable
from typing import Any

import httpx

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess, wait_until
from tests.engines.speech import FOREVER_WORD, TEXT, TOOL_NAME

PUBLIC = "team/tiny:1"  # the chat model's public name; its engine calls it tiny-chat
ALIAS = "gpt-4o-mini"
CHAT, EMBED, RERANK = "tiny-chat", "tiny-embed", "tiny-rerank"

WORDS = tuple(word if at == 0 else f" {word}" for at, word in enumerate(TEXT.split(" ")))  # one token each
SAID = len(WORDS) + 1  # completion tokens of the whole text: its words and the end of the turn
HI: Any = [{"role": "user", "content": "hi"}]
HI_TOKENS = 22  # of HI in the chat template: one a character, three of the template's own, and BOS
ENDLESS: Any = [{"role": "user", "content": f"{FOREVER_WORD}, please"}]
MANY = 200_000  # tokens: more than llama-server makes in any test's time
TOOL: Any = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def one_engine(root: str, more: str = "") -> str:
    """Settings for a gateway in front of one engine alone."""
    return f"discovery: {{local: false}}\nbackends: {{only: {{base_url: {root}}}}}\n{more}"


def post(base_url: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{base_url}{path}", json=body, headers=named, timeout=PATIENCE, trust_env=False)


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(
        url, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=PATIENCE, trust_env=False
    )


def refusal(response: Any) -> dict[str, Any]:
    """The error of an answer, whose envelope must be OpenAI's whole one."""
    assert response.headers["content-type"] == "application/json"
    (envelope,) = response.json().items()
    assert envelope[0] == "error"
    assert envelope[1].keys() == {"message", "type", "param", "code"}
    told: dict[str, Any] = envelope[1]
    return told


def access_lines(gateway: Gateway, path: str, count: int = 1) -> list[dict[str, Any]]:
    """The access lines of that path, once there are `count`."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in gateway.log_text().splitlines() if line.startswith('{"time"')]
        return [line for line in found if line["path"] == path]

    wait_until(lambda: len(lines()) >= count, f"{count} access lines of {path}")
    return lines()


def row(gateway: Gateway, name: str = "only") -> dict[str, Any]:
    """A backend's row in /healthz."""
    rows = get(f"{gateway.base_url}/healthz").json()["backends"]
    return next(one for one in rows if one["name"] == name)


def slots(engine: ServerProcess) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = get(f"{engine.base_url}/slots").json()
    return listed


def busy(engine: ServerProcess) -> list[dict[str, Any]]:
    """The slots that compute."""
    return [slot for slot in slots(engine) if slot["is_processing"]]


def decoded(engine: ServerProcess) -> int:
    """Tokens that the busy slots have generated so far."""
    return sum(part["n_decoded"] for slot in busy(engine) for part in slot["next_token"])


def generating(engine: ServerProcess) -> Callable[[], bool]:
    return lambda: decoded(engine) > 0
