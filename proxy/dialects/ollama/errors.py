"""Ollama's errors, as clients see them: decided by one table of texts and statuses.

A body is `{"error": text}`; since 0.30 the text may be JSON of llama-server's own. Ollama answers 500 for much that is
the client's fault, so the text comes first. An error line inside a stream, or in a body that came with 200, is read
as a 500.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from proxy.dialects.base import Answered, Endpoint
from proxy.dialects.shared.errors import with_retry_after
from proxy.dialects.shared.faults import CONTEXT, context_param
from proxy.errors import NO_RETRY, ApiError, Headers, bad_request, error
from proxy.wire import InvalidJson, JsonObject, load_object

# Error texts that a routing error can't be taken for.
_NO_CONTEXT: Final = frozenset((401, 403, 404, 429))
_OVERFLOW: Final = "exceed_context_size_error"


class _Row(NamedTuple):
    """A text that means `code`, with these upstream statuses."""

    statuses: tuple[int, ...]
    text: re.Pattern[str]
    code: str
    param: str | None = None
    headers: Headers | None = None


def _row(statuses: tuple[int, ...], text: str, code: str, param: str | None, headers: Headers | None = None) -> _Row:
    return _Row(statuses, re.compile(text), code, param, headers)


SCHEMA: Final = "JSON schema"
_ROWS: Final[tuple[_Row, ...]] = (
    _row((400,), r"does not support thinking|think value", "unsupported_parameter", "reasoning_effort"),
    _row((400,), r"does not support tools", "unsupported_parameter", "tools"),
    _row((400,), r"logprobs is not supported with tools", "unsupported_parameter", "logprobs"),
    _row(
        (400, 500),
        r"image input is not supported|does not support multimodal requests",
        "unsupported_value",
        "messages",
    ),
    _row((400, 500), SCHEMA, "invalid_value", "response_format"),
    _row((400,), r"does not support (?:chat|generate|completion|insert)", "unsupported_endpoint", "model"),
    _row((500,), r"invalid format", "invalid_value", "response_format"),
    _row((500,), r'option ".*" must be of type', "invalid_value", "options"),
    _row((500,), r"invalid tool call arguments", "upstream_generation_failed", None, NO_RETRY),
)

# Statuses that keep theirs; what isn't here is a 500.
_BROKEN: Final = frozenset((500, 502, 504))

# What an engine without that ability would have said, had it said anything.
_LACKS: Final[dict[Endpoint, str]] = {
    "embeddings": (
        "The model can't embed in Ollama on backend '{}'. Ask an embedding model (such as nomic-embed-text), or one "
        "on an Infinity, TEI, vLLM or llama.cpp backend."
    ),
}
_LACKS_ANY: Final = (
    "The model can't do this in Ollama on backend '{}'. Ask another model, or one on a vLLM, SGLang or llama.cpp "
    "backend."
)


def failure(answer: Answered, endpoint: Endpoint, backend: str, *, tools: bool = False) -> ApiError:
    """An answer with an error status. `tools`: the request had tools and no response_format, so a schema that Ollama
    refuses came from them."""
    told = _object(answer.body)
    said = told.get("error")
    if isinstance(said, dict):
        said = said.get("message")
    exc = verdict(answer.status, said if isinstance(said, str) else None, endpoint, backend, tools=tools)
    return with_retry_after(exc, answer.header(b"retry-after"))


def error_in(body: JsonObject, endpoint: Endpoint, backend: str, *, tools: bool = False) -> ApiError | None:
    """The error that an object with status 200, or a line of a stream, is; None if it is an answer."""
    said = body.get("error")
    if not said:
        return None
    if isinstance(said, dict):
        said = said.get("message")
    return verdict(500, said if isinstance(said, str) else None, endpoint, backend, tools=tools)


def is_missing_route(answer: Answered) -> bool:
    """A 404 that says nothing of a model: this Ollama has no such path."""
    return answer.status == 404 and "error" not in _object(answer.body)


def verdict(status: int, said: str | None, endpoint: Endpoint, backend: str, *, tools: bool = False) -> ApiError:
    """What that status with that text (None: no error in JSON) is to the client."""
    text, kind = _inner(said or "")
    if status not in _NO_CONTEXT and (kind == _OVERFLOW or CONTEXT.search(text)):
        return error("context_length_exceeded", text, param=context_param(endpoint))
    for row in _ROWS:
        if status in row.statuses and row.text.search(text):
            param = "tools" if tools and row.text.pattern == SCHEMA else row.param
            return error(row.code, text, param=param, headers=row.headers)
    text = text or f"Ollama on backend '{backend}' answered {status} without a readable error. See its log."
    return _by_status(status, text, said is not None, endpoint, backend)


def _by_status(status: int, text: str, json: bool, endpoint: Endpoint, backend: str) -> ApiError:
    if status == 400:
        return bad_request(text)
    if status in (401, 403):
        return error("upstream_auth_failed", _refused(status, text if json else "", backend))
    if status == 404 and json:
        return error("model_not_found", text, param="model")
    if status == 404:
        return error(
            "upstream_invalid_response",
            f"Ollama on backend '{backend}' has no such route (404). Check the base_url, or update Ollama.",
        )
    if status == 429:
        return error("rate_limit_exceeded", text)
    if status == 501:
        return error(
            "unsupported_endpoint",
            text if json else _LACKS.get(endpoint, _LACKS_ANY).format(backend),
            param="model",
        )
    if status == 503:
        return error("backend_overloaded", text)
    return error("upstream_error", text, status=status if status in _BROKEN else 500)


def _refused(status: int, text: str, backend: str) -> str:
    if status == 403 and not text:
        return (
            f"Ollama on backend '{backend}' refused the Host or Origin of the proxy (403). Let it listen on that "
            "address (OLLAMA_HOST) and allow the origin (OLLAMA_ORIGINS)."
        )
    said = f": {text}" if text else ""
    return (
        f"Ollama on backend '{backend}' refused the proxy ({status}{said}). Check the backend's api_key, or, for a "
        "cloud model, sign that Ollama in (`ollama signin`)."
    )


def _inner(text: str) -> tuple[str, str | None]:
    """The text and kind of an error that is JSON inside the error's text; other texts as they are."""
    inner = _object(text.encode(errors="replace")).get("error") if text.lstrip().startswith("{") else None
    if not isinstance(inner, dict) or not isinstance(inner.get("message"), str):
        return text, None
    kind: Any = inner.get("type")
    return inner["message"], kind if isinstance(kind, str) else None


def _object(body: bytes) -> JsonObject:
    try:
        return load_object(body)
    except InvalidJson:
        return {}
