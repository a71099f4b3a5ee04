"""Errors as clients see them: OpenAI's envelope, one table of kinds, and nothing else.

A leaf: it imports nothing of the project and does no I/O. Everything that goes wrong is raised as (or turned
into) an `ApiError`, made by one of the names below, so that status, type, code and retry headers agree everywhere.

Statuses follow what the official SDKs do with them: every 5xx is retried unless `x-should-retry: false` says
otherwise, so a failure that a retry can't mend is a 4xx or carries that header.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

Headers = tuple[tuple[str, str], ...]

REQUEST: Final = "invalid_request_error"
RATE_LIMIT: Final = "rate_limit_error"
SERVER: Final = "server_error"
REMOTE: Final = "RemoteEndpointError"
CAPABILITY: Final = "CapabilityNotSupported"

NO_RETRY: Final[Headers] = (("x-should-retry", "false"),)


class Kind(NamedTuple):
    """What a code means on the wire."""

    status: int
    type: str
    headers: Headers = ()


# code -> status, type, extra headers. The one place where they are tied together.
KINDS: Final[dict[str, Kind]] = {
    "invalid_json": Kind(400, REQUEST),
    "missing_required_parameter": Kind(400, REQUEST),
    "invalid_value": Kind(400, REQUEST),
    "unsupported_parameter": Kind(400, REQUEST),
    "unsupported_value": Kind(400, REQUEST),
    "invalid_image_url": Kind(400, REQUEST),
    "context_length_exceeded": Kind(400, REQUEST),
    "chat_template_error": Kind(400, REQUEST),
    "chat_template_unavailable": Kind(400, REQUEST),
    "invalid_tool": Kind(400, REQUEST),
    "backend_not_configured": Kind(400, REMOTE),
    "invalid_api_key": Kind(401, REQUEST, (("www-authenticate", "Bearer"),)),
    "origin_not_allowed": Kind(403, REQUEST),
    "host_not_allowed": Kind(403, REQUEST),
    "model_not_found": Kind(404, REQUEST),
    "unknown_url": Kind(404, REQUEST),
    "method_not_allowed": Kind(405, REQUEST),
    "request_too_large": Kind(413, REQUEST),
    "unsupported_endpoint": Kind(422, CAPABILITY),
    "rate_limit_exceeded": Kind(429, RATE_LIMIT, (("retry-after", "1"),)),
    "internal_error": Kind(500, SERVER),
    "upstream_error": Kind(500, SERVER),
    "upstream_generation_failed": Kind(500, SERVER),
    "upstream_invalid_response": Kind(502, REMOTE),
    "upstream_auth_failed": Kind(502, REMOTE, NO_RETRY),
    "upstream_incomplete": Kind(502, REMOTE),
    "backend_unavailable": Kind(503, REMOTE, (("retry-after", "5"),)),
    "model_loading": Kind(503, SERVER, (("retry-after", "5"),)),
    "backend_overloaded": Kind(503, SERVER, (("retry-after", "1"),)),
    "backend_timeout": Kind(504, REMOTE),
    # Of engines that a launcher runs; the first four are the launcher's own words.
    "engine_failed": Kind(502, REMOTE, NO_RETRY),
    "engine_missing": Kind(502, REMOTE, NO_RETRY),
    "engine_memory": Kind(503, REMOTE, (("retry-after", "5"),)),
    "engine_stopped": Kind(503, REMOTE, (("retry-after", "5"),)),
    "launcher_unavailable": Kind(503, REMOTE, (("retry-after", "5"),)),
}


class ApiError(Exception):
    """A failure that a client is told about.

    `message` is for people: what happened, which backend, what to do next. It never holds a key or a traceback.
    `status` is ignored once a stream has begun; the object then travels inside it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        param: str | None = None,
        code: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers: Headers = tuple(headers)

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """`{"error": {message, type, param, code}}`: always these four members."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def __repr__(self) -> str:
        return f"ApiError({self.status}, {self.code}, {self.message!r})"


def error(
    code: str,
    message: str,
    *,
    param: str | None = None,
    status: int | None = None,
    headers: Headers | None = None,
) -> ApiError:
    """The `ApiError` of that code in `KINDS`; `status` and `headers` replace the table's where a row of the
    contract says so (an upstream's own 502 keeps its status, for example)."""
    kind = KINDS[code]
    return ApiError(
        message,
        status=kind.status if status is None else status,
        type=kind.type,
        param=param,
        code=code,
        headers=kind.headers if headers is None else headers,
    )


def bad_request(message: str, *, param: str | None = None) -> ApiError:
    """A 400 with no code of its own."""
    return ApiError(message, status=400, type=REQUEST, param=param)
