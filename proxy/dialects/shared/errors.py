"""Error answers of engines that speak OpenAI, as clients see them: one envelope, decided by tables.

An engine's own text is passed on as it is. Where it gave none, the message names the backend and says what to do
next. An engine that repeats the backend's key is `forward`'s concern.

Not here: the shapes that errors come in (`faults`), TGI's own kinds (`tgi_errors`), failures of the connection itself
(`transport`).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from proxy.dialects.base import Endpoint
from proxy.dialects.shared.faults import Fault, context_param, is_blind, names_model, parse, read, too_long
from proxy.errors import REQUEST, ApiError, error
from proxy.wire import JsonObject

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
    if status in (400, 500) and is_blind(fault):
        return error("unsupported_value", text, param=context_param(endpoint))
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
