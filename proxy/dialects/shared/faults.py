"""What an engine said when it failed, read from any of the shapes in use.

`{"error": {…}}`, `{"error": text}`, a flat error object, FastAPI's `{"detail": text or list}`, and text or HTML, which
gives no message at all: it was not written for a client of an API.

Not here: what it means for the client (`errors`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from proxy.dialects.base import Endpoint
from proxy.wire import InvalidJson, load

# How engines say that a prompt is too long. Clients depend on the code that this gives.
CONTEXT: Final = re.compile(
    r"maximum context length|longer than the (model's )?context|exceeds? the (model's )?(maximum )?(available )?context"
    r"|input length exceeds the context|`inputs` tokens \+ `max_new_tokens`|`inputs` must have less than"
    r"|exceed_context_size",
    re.IGNORECASE,
)
# How llama.cpp says, with a 500, that a model can't see.
_BLIND: Final = re.compile(r"image input is not supported|does not support multimodal requests")
_MODEL_MISSING: Final = re.compile(r"\bmodel\b.*(does not exist|not found)", re.IGNORECASE)

# The member that holds the text which was too long.
_CONTEXT_PARAMS: Final[dict[Endpoint, str]] = {
    "chat": "messages",
    "responses": "messages",
    "messages": "messages",
    "count_tokens": "messages",
    "completions": "prompt",
    "tokenize": "prompt",
    "infill": "prompt",
    "embeddings": "input",
    "classify": "input",
    "pooling": "input",
    "speech": "input",
    "rerank": "documents",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What an engine said; `message` is None where nothing could be read."""

    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None  # never a number
    status: int | None = None  # a code that is a number


def parse(content_type: str, body: bytes) -> Fault:
    """The body of an error answer; never raises."""
    if "html" in content_type.lower():
        return Fault()
    try:
        value = load(body)
    except InvalidJson:
        return Fault()
    return read(value) if isinstance(value, dict) else Fault()


def context_param(endpoint: Endpoint) -> str | None:
    """The request member that `context_length_exceeded` is about."""
    return _CONTEXT_PARAMS.get(endpoint)


def too_long(fault: Fault) -> bool:
    """Was the prompt longer than the model's context?"""
    if "exceed_context_size_error" in (fault.type, fault.code) or fault.code == "context_length_exceeded":
        return True
    return fault.message is not None and CONTEXT.search(fault.message) is not None


def is_blind(fault: Fault) -> bool:
    """Was it a picture for a model that takes none?"""
    return fault.message is not None and _BLIND.search(fault.message) is not None


def names_model(fault: Fault) -> bool:
    """Is it about a model that isn't there?"""
    if fault.param == "model" or fault.code == "model_not_found":
        return True
    return fault.message is not None and _MODEL_MISSING.search(fault.message) is not None


def read(value: Any) -> Fault:
    """A parsed error, with its wrapping or without; never raises."""
    # `{"error": …}` and `{"detail": …}` hold a text, an error object or a list; seldom one more wrapping.
    for _ in range(3):
        if not isinstance(value, dict) or isinstance(value.get("message"), str):
            break
        value = value.get("error") or value.get("detail") or value
    if isinstance(value, str):
        return _inner(value) or Fault(value or None)
    if isinstance(value, list):
        return _details(value)
    if not isinstance(value, dict):
        return Fault()
    message, type_, code = value.get("message"), value.get("type"), value.get("code")
    if isinstance(message, str) and (inner := _inner(message)) is not None:
        return inner
    return Fault(
        message if isinstance(message, str) and message else None,
        type_ if isinstance(type_, str) else None,
        _param(value.get("param")),
        code if isinstance(code, str) and code and not code.isdigit() else None,
        _status(code),
    )


def _inner(text: str) -> Fault | None:
    """An error that is JSON inside an error's text: Ollama passes llama-server's on like that, under /v1 too."""
    if not text.startswith("{"):
        return None
    try:
        value = load(text)
    except InvalidJson:
        return None
    found = read(value) if isinstance(value, dict) and "error" in value else None
    return found if found is not None and found.message else None


def _details(items: list[Any]) -> Fault:
    """FastAPI's list of validation errors."""
    texts: list[str] = []
    first: str | None = None
    for item in items:
        if not isinstance(item, dict):
            texts.append(str(item))
            continue
        loc = item.get("loc")
        steps = [str(step) for step in loc] if isinstance(loc, list) else []
        path = ".".join(steps[1:] if steps[:1] == ["body"] else steps)
        texts.append(f"{path}: {item.get('msg')}" if path else str(item.get("msg")))
        first = path if first is None else first
    return Fault("; ".join(texts) or None, param=_param(first))


def _param(value: Any) -> str | None:
    """A member's name; not the place in the body where its JSON broke."""
    if not isinstance(value, str):
        return None
    name = value.removeprefix("body.")
    return None if name in ("", "body") or name.isdigit() else name


def _status(code: Any) -> int | None:
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else None
