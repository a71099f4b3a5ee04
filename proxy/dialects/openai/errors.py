"""Error answers of engines that speak OpenAI, as clients see them: one envelope, decided by tables.

An engine's own text is passed on as it is. Where it gave none, the message names the backend and says what to do
next. Keys never appear, because only what the engine answered is looked at. TGI has kinds of its own, told by
`error_type` or, in the streams of its /v1 (which say 422 whatever the cause), by how the text begins.

Not here: the shapes that errors come in (`faults`), failures of the connection itself (`transport`).
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

from proxy.dialects.base import Endpoint
from proxy.dialects.openai.faults import CONTEXT, Fault, context_param, names_model, parse, read, too_long
from proxy.errors import NO_RETRY, REQUEST, ApiError, Headers, error
from proxy.wire import InvalidJson, JsonObject, load

MAX_RETRY_AFTER: Final = 60  # seconds; SDKs ignore longer ones


class _Row(NamedTuple):
    """What an upstream status means. `said`: only if the engine put an error in JSON."""

    code: str
    status: int | None = None
    said: bool = False


# 401, 403, 404, 405, 400 and 422 depend on more than the status: `_verdict`.
_STATUSES: Final[dict[int, _Row]] = {
    413: _Row("request_too_large"),
    429: _Row("rate_limit_exceeded"),
    500: _Row("upstream_error"),
    501: _Row("unsupported_endpoint"),
    502: _Row("upstream_error", status=502, said=True),
    503: _Row("backend_overloaded"),
    504: _Row("upstream_error", status=504, said=True),
}

# For answers without a readable text. {0}: the backend, {1}: the status.
_GENERIC: Final = "Backend '{0}' answered {1} without a readable error. See its log."
_WORDS: Final[dict[int, str]] = {
    413: "Backend '{0}' refused the request body as too large. Send less, or raise the limit of that engine.",
    429: "Backend '{0}' takes no more requests at the moment. Try again later.",
    501: "Backend '{0}' does not serve this. Ask a model that does, or start the engine with that ability.",
    503: "Backend '{0}' is not ready or overloaded. Try again later.",
}


def decode_error(
    status: int,
    content_type: str,
    body: bytes,
    endpoint: Endpoint,
    backend: str,
    *,
    retry_after: str | None = None,
) -> ApiError:
    """An answer with an error status, as the client shall see it. `retry_after` is the upstream's header, honoured
    in seconds up to 60 where the table retries at all."""
    exc = _verdict(status, parse(content_type, body), endpoint, backend)
    return with_retry_after(exc, retry_after)


def decode_error_event(event: JsonObject, endpoint: Endpoint, backend: str) -> ApiError:
    """An error object found inside a stream: `{"error": …}`, or the error itself. A number as its code counts as
    the status, without one it is 500."""
    fault = read(event)
    return _verdict(fault.status or 500, fault, endpoint, backend)


def error_in_200(body: JsonObject, endpoint: Endpoint, backend: str) -> ApiError | None:
    """The error that a JSON answer with status 200 is in truth; None if it is an answer."""
    # A response object of the Responses API says `error` in every answer, also in one that failed properly.
    answer = "choices" in body or "data" in body or body.get("object") == "response"
    if body.get("object") == "error" or (body.get("error") and not answer):
        return decode_error_event(body, endpoint, backend)
    return None


def is_missing_route(status: int, body: bytes) -> bool:
    """True if the engine has no such path (or method), as opposed to no such model. On a backend that is known to be
    healthy that means: this engine lacks the whole capability."""
    return status == 405 or (status == 404 and not names_model(parse("", body)))


def with_retry_after(exc: ApiError, value: str | None) -> ApiError:
    """The same error with the upstream's `Retry-After` in place of the table's, where it has one and both make
    sense. A date is not understood here: that would need a clock."""
    try:
        seconds = float(value or "")
    except ValueError:
        return exc
    if seconds > 0:
        wait = str(math.ceil(min(seconds, MAX_RETRY_AFTER)))
        exc.headers = tuple((name, wait if name == "retry-after" else old) for name, old in exc.headers)
    return exc


# -- what it means -------------------------------------------------------------------------------------------


def _verdict(status: int, fault: Fault, endpoint: Endpoint, backend: str) -> ApiError:
    text = fault.message or _WORDS.get(status, _GENERIC).format(backend, status)
    if status in (401, 403):
        return error(
            "upstream_auth_failed",
            f"Backend '{backend}' refused the proxy's own credentials ({status}). "
            "Check its api_key in the configuration.",
        )
    if status in (404, 405):
        return _absent(status, fault, backend)
    if status != 429 and too_long(fault):
        return error("context_length_exceeded", text, param=context_param(endpoint))
    row = _STATUSES.get(status)
    if row is None and 400 <= status < 500 and (fault.message or status in (400, 422)):
        code = fault.code or ("invalid_value" if fault.param else None)
        return ApiError(text, status=400, type=REQUEST, param=fault.param, code=code)
    if row is None and status >= 500:
        row = _Row("upstream_error", said=True)
    if row is None or (row.said and not fault.message):
        return error("upstream_invalid_response", _unusable(status, backend))
    if row.code == "unsupported_endpoint":
        return error(row.code, text, param="model")
    code = "model_loading" if status == 503 and "loading" in text.lower() else row.code
    exc = error(code, text, param=fault.param, status=row.status)
    exc.code = fault.code or exc.code
    return exc


def _absent(status: int, fault: Fault, backend: str) -> ApiError:
    if status == 404 and names_model(fault):
        return error("model_not_found", fault.message or f"Backend '{backend}' lacks that model.", param="model")
    said = f": {fault.message}" if fault.message else ""
    return error(
        "upstream_invalid_response",
        f"Backend '{backend}' has no such route ({status}{said}). "
        "Check its base_url and kind; an older or differently started engine may also lack this endpoint.",
    )


def _unusable(status: int, backend: str) -> str:
    if status < 400:
        return f"Backend '{backend}' answered {status} where a result was due. Check its base_url."
    return _GENERIC.format(backend, status)


# -- TGI -----------------------------------------------------------------------------------------------------

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
