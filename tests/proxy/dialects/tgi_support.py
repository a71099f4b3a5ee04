"""What the tests of TGI's own /v1 share: targets, made-up answers of TGI's, and OpenAI's own idea of a reply."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.dialects.base import Target
from proxy.dialects.openai.tgi import ReplyFixer, encode
from proxy.errors import ApiError
from tests.vectors_support import data

HI = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def target(version: str | None = "3.3.7", *, strict: bool = False, **options: Any) -> Target:
    return Target("tgi", "old", "acme/m", "pub-m", version=version, strict_params=strict, options=options)


def new_ids() -> Callable[[str], str]:
    made: list[str] = []

    def new_id(prefix: str) -> str:
        made.append(prefix)
        return prefix + f"{len(made):032x}"

    return new_id


def fixer(endpoint: Any, request: dict[str, Any], **options: Any) -> ReplyFixer:
    return ReplyFixer(endpoint, request, target(**options), new_ids())


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "pub-m", "messages": HI, **members}


def sent_chat(version: str | None = "3.3.7", **members: Any) -> dict[str, Any]:
    """What goes up besides model and messages."""
    body, _ = encode("chat", chat(**members), target(version))
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


def rejected(endpoint: Any, body: dict[str, Any], to: Target | None = None) -> tuple[Any, Any]:
    before = copy.deepcopy(body)
    with pytest.raises(ApiError) as caught:
        encode(endpoint, body, to or target())
    assert body == before
    assert caught.value.message
    assert caught.value.status == (422 if caught.value.code == "unsupported_endpoint" else 400)
    return caught.value.param, caught.value.code


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "logprobs": None, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice | more], "usage": None}


def piece(text: str, reason: str = "", index: int = 0, usage: Any = None) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
    return {**HEAD, "object": "text_completion", "choices": [choice]} | ({"usage": usage} if usage else {})


HEAD = {"id": "", "created": 7, "model": "Q", "system_fingerprint": "3.3.6-dev0-native"}


def piece_whole(text: str, reason: str = "stop") -> dict[str, Any]:
    return piece(text, reason, usage=usage(2, 3))


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def run(fix: ReplyFixer, chunks: list[dict[str, Any]], **how: Any) -> list[dict[str, Any]]:
    """As the stream decoder does it: nothing is fed after the answer was ended here."""
    out: list[dict[str, Any]] = []
    for one in chunks:
        out += fix.event(copy.deepcopy(one))
        if fix.stopped:
            break
    return out + fix.end(**how)


def deltas(chunks: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [
        (c["choices"][0].get("delta", c["choices"][0].get("text")), c["choices"][0]["finish_reason"]) for c in chunks
    ]


def check_whole_chat(body: dict[str, Any]) -> None:
    ChatCompletion.model_validate(body, strict=True)
    check_schema("CreateChatCompletionResponse", body)


def check_chunks(endpoint: str, chunks: list[dict[str, Any]]) -> None:
    for one in chunks:
        if endpoint == "chat":
            ChatCompletionChunk.model_validate(one, strict=True)
            check_schema("CreateChatCompletionStreamResponse", one)


def check_schema(name: str, body: dict[str, Any]) -> None:
    try:
        import jsonschema
    except ImportError:  # not a dependency; the models of the official client are always asked
        return
    bundle = data("openai-jsonschema-bundle")
    jsonschema.validate(body, {"$ref": f"#/$defs/{name}", "$defs": bundle["$defs"]})
