"""Whole answers of engines that speak OpenAI: the public name, OpenAI's finish reasons, usage, errors told with a 200.

A chat's or completion's that needs no change is known by a glance. Any other small JSON body is split into its
top-level members; a large one (embeddings) has its name replaced where it stands and is otherwise handed on unread.
"""

from __future__ import annotations

import re
from typing import Any, Final

from proxy import glance
from proxy.dialects.base import Endpoint, ReasoningField, Reply, Target, Usage
from proxy.dialects.openai.names import Renamer
from proxy.dialects.shared.errors import error_in_200
from proxy.errors import ApiError, error
from proxy.glance_types import ABSENT, Counted, Told
from proxy.wire import InvalidJson, JsonObject, Raw, dump, load, load_object, members

SMALL: Final = 64 * 1024
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*\})')
# Chat and completions; Responses and Messages, whose cached tokens are counted apart in the Messages API only.
_PROMPT: Final = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_COMPLETION: Final = ("completion_tokens", "output_tokens")
_CHOICES: Final = frozenset(("chat", "completions"))
_ODD_REASONS: Final = frozenset(("abort", ""))
_ODD_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"(?:abort)?"')


def decode_json(endpoint: Endpoint, target: Target, body: bytes) -> Reply:
    """A JSON answer with status 200. Raises `ApiError` where it is an error all the same, or no JSON."""
    if len(body) > SMALL:
        return _large(target, body)
    if endpoint in _CHOICES and target.reasoning_field == "passthrough":
        seen = glance.told(body)
        if seen is not None and seen.model == target.public and _is_usual(seen):
            return Reply(body, usage=_counted(seen.usage))
    try:
        parts = members(body)
    except InvalidJson:
        return _bare(target, body)
    if "error" in parts or "object" in parts:
        told = error_in_200(load_object(body), endpoint, target.backend) if _may_be_error(parts) else None
        if told is not None:
            raise told
    usage = usage_of({"usage": load(parts["usage"])}) if "usage" in parts else None
    if target.reasoning_field != "passthrough" or _ODD_FINISH.search(body):
        return Reply(dump(_deep(load_object(body), target)), usage=usage)
    if "model" not in parts:
        return Reply(body, usage=usage)
    public = dump(target.public)
    if bytes(parts["model"]) == public:
        return Reply(body, usage=usage)
    parts["model"] = Raw(public)
    return Reply(dump(parts), usage=usage)


def _is_usual(seen: Told) -> bool:
    """No error in disguise, and only finish reasons that OpenAI has?"""
    if seen.error is not ABSENT or seen.object == "error":
        return False
    for choice in seen.choices:  # noqa: SIM110 - on the hot path
        if choice.finish_reason in _ODD_REASONS:
            return False
    return True


def _counted(seen: Counted | None) -> Usage | None:
    if seen is None:
        return None
    prompt = seen.prompt_tokens + seen.input_tokens + seen.cache_read_input_tokens + seen.cache_creation_input_tokens
    return Usage(prompt, seen.completion_tokens + seen.output_tokens)


def _may_be_error(parts: dict[str, Raw]) -> bool:
    told = parts.get("error")
    return (told is not None and bytes(told) != b"null") or bytes(parts.get("object", b"")) == b'"error"'


def _large(target: Target, body: bytes) -> Reply:
    renamer = Renamer(target.public)
    renamer.learn(body)
    found = _USAGE.search(body[-4096:]) or _USAGE.search(body[:4096])
    return Reply(renamer.apply(body), usage=usage_of({"usage": load(found[1])}) if found else None)


def _bare(target: Target, body: bytes) -> Reply:
    """JSON that is no object (a list of tokens, say) passes; anything else is nonsense."""
    try:
        load(body)
    except InvalidJson:
        raise no_json(target) from None
    return Reply(body)


def no_json(target: Target) -> ApiError:
    return error(
        "upstream_invalid_response",
        f"Backend '{target.backend}' gave an answer that is not JSON. Check its log, and that its base_url is right.",
    )


def _deep(body: JsonObject, target: Target) -> JsonObject:
    for choice in body.get("choices") or ():
        if isinstance(choice, dict) and choice.get("finish_reason") in ("abort", ""):
            choice["finish_reason"] = "stop" if choice["finish_reason"] else None
    rename_reasoning(body, "message", target.reasoning_field)
    if "model" in body:
        body["model"] = target.public
    return body


def usage_of(body: JsonObject) -> Usage | None:
    """Tokens counted in a reply, a chunk or a typed event (where they are one level down)."""
    counted = body.get("usage")
    for inner in ("response", "message"):
        if counted is None and isinstance(body.get(inner), dict):
            counted = body[inner].get("usage")
    if not isinstance(counted, dict):
        return None
    prompt = completion = 0
    for name, value in counted.items():
        if isinstance(value, int):
            if name in _PROMPT:
                prompt += value
            elif name in _COMPLETION:
                completion += value
    return Usage(prompt, completion)


def rename_reasoning(body: JsonObject, where: str, wanted: ReasoningField) -> bool:
    """One name for thinking (`where` is `message` or `delta`); True if something changed."""
    if wanted == "passthrough":
        return False
    changed = False
    for choice in body.get("choices") or ():
        part: Any = choice.get(where) if isinstance(choice, dict) else None
        if not isinstance(part, dict) or not ("reasoning" in part or "reasoning_content" in part):
            continue
        text = part.get("reasoning_content")
        text = part.get("reasoning") if text is None else text
        names = ("reasoning", "reasoning_content") if wanted == "both" else (wanted,)
        new = dict.fromkeys(names, text)
        rest = {k: v for k, v in part.items() if k not in ("reasoning", "reasoning_content")}
        changed = changed or new | rest != part
        choice[where] = rest | new
    return changed
