"""What one object of Ollama's says, whole reply or line of a stream: `/api/chat` and `/api/generate` alike.

Ollama leaves out what is zero or empty, so everything has a default here. Not here: OpenAI's shapes
(`shared.openai_out`), and how lines become a stream (`stream`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from proxy.dialects.base import Usage
from proxy.dialects.shared.logprobs import Token, entry
from proxy.wire import JsonObject, dump

# Seconds, fraction (0 to 9 digits), offset.
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.\d*)?([Zz]|[+-]\d\d:?\d\d)?")


class Call(NamedTuple):
    """A tool call, which always comes whole. `arguments` is JSON text."""

    id: str | None
    name: str
    arguments: str


class Said(NamedTuple):
    """The generated part of an object. `present`: it has one, be it empty."""

    present: bool
    content: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()


def said(body: JsonObject) -> Said:
    """Text, thinking and calls of a chat's `message` or of a generate's `response`."""
    message = body.get("message")
    if isinstance(message, dict):
        calls = message.get("tool_calls")
        made = tuple(_call(one) for one in calls if isinstance(one, dict)) if isinstance(calls, list) else ()
        return Said(True, _text(message.get("content")), _text(message.get("thinking")), made)
    response = body.get("response")
    return Said(isinstance(response, str), _text(response), _text(body.get("thinking")))


def logprobs(body: JsonObject, wanted: int) -> list[JsonObject] | None:
    """OpenAI's entries for the object's tokens; None where it has none (servers before 0.12.11)."""
    given = body.get("logprobs")
    if not isinstance(given, list):
        return None
    return [_entry(one, wanted) for one in given if isinstance(one, dict)]


def usage(body: JsonObject) -> Usage:
    """Tokens; a missing counter is 0."""
    return Usage(_count(body.get("prompt_eval_count")), _count(body.get("eval_count")))


def finish_reason(done_reason: Any, calls: int) -> str:
    """OpenAI's word for Ollama's `done_reason`, after that many tool calls."""
    if done_reason == "length":
        return "length"
    return "tool_calls" if calls else "stop"


def guard_reason(calls: int) -> str:
    """The same where Ollama's repetition guard ended the answer."""
    return "tool_calls" if calls else "length"


def created(created_at: Any) -> int | None:
    """Whole seconds of an RFC 3339 time with any fraction; None if it is none."""
    found = _TIME.fullmatch(created_at) if isinstance(created_at, str) else None
    if found is None:
        return None
    offset = found[2] or "Z"
    try:
        return int(datetime.fromisoformat(found[1] + ("+00:00" if offset in "Zz" else offset)).timestamp())
    except (ValueError, OverflowError):
        return None


def _call(one: Mapping[str, Any]) -> Call:
    function = one.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = dump({} if arguments is None else arguments).decode()
    return Call(_text(one.get("id")) or None, _text(function.get("name")), arguments)


def _entry(one: Mapping[str, Any], wanted: int) -> JsonObject:
    others = one.get("top_logprobs")
    return entry(_token(one), [_token(o) for o in others if isinstance(o, dict)] if wanted and others else (), wanted)


def _token(one: Mapping[str, Any]) -> Token:
    return Token(_text(one.get("token")), one.get("logprob"), one.get("bytes"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
