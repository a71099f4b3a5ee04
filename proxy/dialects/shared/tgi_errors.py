"""TGI's errors as clients see them, native and of its own /v1.

TGI tells the kind by `error_type`; the streams of its /v1, which say 422 whatever the cause, only by how the text
begins. What has no kind at all is an error like any engine's (`errors`).
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from proxy.dialects.base import Endpoint
from proxy.dialects.shared.errors import decode_error, with_retry_after
from proxy.dialects.shared.faults import CONTEXT, context_param
from proxy.errors import NO_RETRY, ApiError, Headers, error
from proxy.wire import InvalidJson, JsonObject, load

VALIDATION: Final = "Input validation error: "


class _TgiRow(NamedTuple):
    code: str
    status: int | None = None  # where it isn't the code's usual one
    param: str | None = None
    headers: Headers | None = None


_TYPES: Final[dict[str, _TgiRow]] = {
    "validation": _TgiRow("invalid_value"),
    "template_error": _TgiRow("chat_template_error"),
    "missing_template_variable": _TgiRow("chat_template_error"),
    "tool_error": _TgiRow("invalid_tool"),
    "suffix not supported": _TgiRow("invalid_value", param="suffix"),
    "batch size exceeded": _TgiRow("invalid_value", param="prompt"),
    "overloaded": _TgiRow("rate_limit_exceeded"),
    "generation": _TgiRow("upstream_generation_failed"),
    "incomplete_generation": _TgiRow("upstream_incomplete", status=500),
    "incomplete_generation_stream": _TgiRow("upstream_incomplete", status=500),
    "stream_serialization_error": _TgiRow("upstream_invalid_response", status=500),
    "healthcheck": _TgiRow("backend_unavailable", headers=(("retry-after", "1"),)),
}

# Texts that outrank their kind: the output limit fell inside a tool call, which a retry would only repeat.
_TEXTS: Final[tuple[tuple[re.Pattern[str], _TgiRow], ...]] = (
    (
        re.compile(r"Tool error: Failed to parse generated text"),
        _TgiRow("upstream_generation_failed", headers=NO_RETRY),
    ),
)

# How a /v1 stream's error texts begin, by kind.
_PREFIXES: Final[tuple[tuple[str, str], ...]] = (
    ("Model is overloaded", "overloaded"),
    ("Request failed during generation", "generation"),
    ("Incomplete generation", "incomplete_generation"),
    (VALIDATION.rstrip(), "validation"),
    ("Template error", "template_error"),
    ("Tool error", "tool_error"),
)

_GRAMMAR: Final = re.compile(r"grammar |cannot compile ")
_IMAGE: Final = re.compile(
    r"invalid image|base64 encoding is invalid|Could not fetch image|Image size|Failed to read image"
)
_QUOTED: Final = re.compile(r"`([^`]+)`")

# TGI's names for what the client called otherwise: (chat, completions).
_PARAMS: Final[dict[str, tuple[str, str]]] = {
    "max_new_tokens": ("max_tokens", "max_tokens"),
    "top_n_tokens": ("top_logprobs", "logprobs"),
    "inputs": ("messages", "prompt"),
}


def decode_tgi_error(
    status: int,
    content_type: str,
    body: bytes,
    endpoint: Endpoint,
    backend: str,
    *,
    tools: bool = False,
    retry_after: str | None = None,
) -> ApiError:
    """An answer of TGI's with an error status. `tools`: the request had tools and no response_format, so a grammar
    that TGI refuses came from them."""
    told = _object(body)
    text, kind = told.get("error"), told.get("error_type")
    if isinstance(text, str) and isinstance(kind, str) and kind in _TYPES:
        return with_retry_after(_tgi_verdict(kind, text, endpoint, tools), retry_after)
    if status in (400, 415, 422) and not told:
        said = body[:300].decode(errors="replace").strip()
        return error(
            "upstream_invalid_response",
            f"Backend '{backend}' (TGI) could not read what the proxy sent ({status}: {said}). "
            "This is a bug of the proxy: please report it.",
        )
    return decode_error(status, content_type, body, endpoint, backend, retry_after=retry_after)


def decode_tgi_event(event: JsonObject, endpoint: Endpoint, backend: str, *, tools: bool = False) -> ApiError:
    """An error event in a stream of TGI's, native or /v1."""
    told, kind = event.get("error"), event.get("error_type")
    text = told.get("message") if isinstance(told, dict) else told
    if not isinstance(text, str) or not text:
        return error("upstream_error", f"Backend '{backend}' (TGI) failed without saying why. See its log.")
    if not isinstance(kind, str) or kind not in _TYPES:
        kind = next((kind for prefix, kind in _PREFIXES if text.startswith(prefix)), None)
    return error("upstream_error", text) if kind is None else _tgi_verdict(kind, text, endpoint, tools)


def _tgi_verdict(kind: str, text: str, endpoint: Endpoint, tools: bool) -> ApiError:
    row = next((row for pattern, row in _TEXTS if pattern.match(text)), _TYPES[kind])
    if kind == "validation":
        return _tgi_validation(text, endpoint, tools)
    return error(row.code, text, param=row.param, status=row.status, headers=row.headers)


def _tgi_validation(text: str, endpoint: Endpoint, tools: bool) -> ApiError:
    if CONTEXT.search(text):
        return error("context_length_exceeded", text, param=context_param(endpoint))
    rest = text.removeprefix(VALIDATION)
    if _GRAMMAR.match(rest):  # before the quoted word, because these quote anything
        return error("invalid_value", text, param="tools" if tools else "response_format")
    if _IMAGE.match(rest):
        return error("invalid_image_url", text, param="messages")
    quoted = _QUOTED.search(rest)
    if quoted is None:
        return error("invalid_value", text)
    names = _PARAMS.get(quoted[1], (quoted[1], quoted[1]))
    return error("invalid_value", text, param=names[endpoint == "completions"])


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = load(body)
    except InvalidJson:
        return {}
    return value if isinstance(value, dict) else {}
