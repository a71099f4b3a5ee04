"""What the tests of Ollama's native dialect share: requests, the steps carried out by hand, and OpenAI's own idea of
a reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from proxy.dialects.base import Answered, Ask, Fetch, Learn, Plan, Reply, Request, StreamDecoder, Target
from proxy.dialects.ollama import DIALECT
from proxy.errors import ApiError
from tests.vectors_support import data

HI = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
NOW = 1_700_000_000
PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}


class Steps:
    """Carries out what `encode` gave; `asked` is what it wanted to know on its way."""

    def __init__(self, answer: Callable[[Ask | Fetch], Answered] | None = None) -> None:
        self.asked: list[Ask | Fetch] = []
        self.learned: dict[str, Any] = {}
        self._answer = answer

    def run(self, begun: Any) -> Plan | Reply:
        if isinstance(begun, Plan):
            return begun
        got = None
        while True:
            try:
                step = next(begun) if got is None else begun.send(got)
            except StopIteration as stop:
                result: Plan | Reply = stop.value
                return result
            if isinstance(step, Learn):
                self.learned[step.name] = step.value
                got = Answered(200, "", b"")
                continue
            self.asked.append(step)
            assert self._answer is not None, f"nobody answers {step}"
            got = self._answer(step)


def target(version: str | None = "0.32.15", *, model: str = "llama3.2:3b", **more: Any) -> Target:
    return Target("ollama", "oll", model, "pub-oll", version=version, **more)


def request(endpoint: Any, body: dict[str, Any]) -> Request:
    return Request(endpoint, json.dumps(body).encode(), None, stream=body.get("stream") is True, now=NOW)


def encode(endpoint: Any, body: dict[str, Any], to: Target | None = None, steps: Steps | None = None) -> Plan:
    plan = (steps or Steps()).run(DIALECT.encode(request(endpoint, body), to or target()))
    assert isinstance(plan, Plan)
    return plan


def sent(endpoint: Any, to: Target | None = None, **members: Any) -> dict[str, Any]:
    """The one body that goes up, without model, stream and what every request has."""
    (call,) = encode(endpoint, chat(**members) if endpoint == "chat" else members, to).calls
    body: dict[str, Any] = json.loads(call.body)
    for name in ("model", "stream", *(["messages"] if "messages" not in members else [])):
        body.pop(name, None)
    return body


def refused(endpoint: Any, to: Target | None = None, **members: Any) -> tuple[Any, Any, int]:
    """What a client is told whose request can't be sent: param, code, status."""
    body = chat(**members) if endpoint == "chat" else members
    with pytest.raises(ApiError) as caught:
        encode(endpoint, body, to)
    assert caught.value.message
    return caught.value.param, caught.value.code, caught.value.status


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "pub-oll", "messages": HI} | members


def answered(body: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Answered:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Answered(status, content_type, raw, lines)


def line(content: str = "", done: bool = False, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | more.pop("message", {})
    return {"model": "x", "created_at": "2026-03-01T12:00:00.5Z", "message": message, "done": done} | more


def ndjson(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in lines)


def pump(decoder: StreamDecoder, pieces: Sequence[bytes], *, proper: bool = True) -> bytes:
    """As forward and relay do it: errors become the stream's last events."""
    out = b""
    try:
        for piece in pieces:
            out += decoder.feed(piece)
        if proper and not decoder.done:
            out += decoder.flush()
    except ApiError as exc:
        out += decoder.take_pending() + decoder.error(exc)
    return out


def events(out: bytes) -> list[Any]:
    assert out.endswith(b"\n\n") or not out
    blocks = out.decode().split("\n\n")[:-1]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [text if (text := block.removeprefix("data: ")) == "[DONE]" else json.loads(text) for block in blocks]


def whole(plan: Plan, *bodies: Any) -> dict[str, Any]:
    reply = plan.decoder.reply([answered(body) for body in bodies])
    result: dict[str, Any] = json.loads(reply.body)
    return result


def check_schema(name: str, body: Any) -> None:
    _validator(name).validate(body)


@cache
def _validator(name: str) -> Any:
    bundle = data("openai-jsonschema-bundle")
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": bundle["$defs"]})


def stream(lines: list[Any], endpoint: Any = "chat", to: Any = None, **members: Any) -> list[Any]:
    body = chat(**members) if endpoint == "chat" else {"prompt": "x"} | members
    (decoder,) = encode(endpoint, body | {"stream": True}, to).decoder.streams()
    return events(pump(decoder, [ndjson(lines)]))


def deltas(chunks: list[Any]) -> list[Any]:
    """What each chunk adds, and how the choice ended."""
    out: list[Any] = []
    for chunk in chunks:
        if isinstance(chunk, str) or "error" in chunk or not chunk["choices"]:
            out.append(chunk if isinstance(chunk, str) else chunk.get("error", {"code": "usage"})["code"])
            continue
        (choice,) = chunk["choices"]
        out.append(choice["finish_reason"] or choice.get("delta", choice.get("text")))
    return out
