"""What surrounds every request, in one pure-ASGI layer: its id, CORS, keys, errors as OpenAI's envelope, one access
line and the metrics at the end.

One layer rather than five, and none of them wraps `send`: a streamed piece goes from the relay straight to the server.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

from proxy.call import CLIENT_LEFT, Call, clock
from proxy.client_request import ClientRequest
from proxy.dialects.base import Endpoint
from proxy.endpoints import ClientLeft, Receive, Send
from proxy.errors import ApiError, error
from proxy.events import error_events
from proxy.headers import Named, RawHeaders, request_id
from proxy.metrics import Metrics
from proxy.relay import Client, shutting_down

log = logging.getLogger("illm")

Scope = dict[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))  # a reverse proxy there is believed whom it forwards for
OPEN_PATHS: Final = frozenset(("/healthz", "/health", "/livez", "/readyz"))  # for probes that hold no key
PROBES: Final = OPEN_PATHS | {"/metrics"}  # asked every few seconds: a line only where something is wrong


class Cors:
    """Which web pages may read answers. An origin without a port stands for every port of that host."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._any = "*" in self._origins

    def allows(self, origin: str) -> bool:
        if self._any or origin in self._origins:
            return True
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        host = f"[{url.hostname}]" if url.hostname and ":" in url.hostname else url.hostname
        return f"{url.scheme}://{host}" in self._origins

    def headers(self, origin: bytes | None) -> RawHeaders:
        """For any answer to that origin."""
        if origin is None or not self.allows(origin.decode("latin-1")):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, x-illm-dropped-params, retry-after"),
            (b"vary", b"origin"),
        ]

    def preflight(self, asked: Named) -> RawHeaders:
        """For an OPTIONS request that asks before the real one."""
        allowed = self.headers(asked.get(b"origin"))
        if not allowed:
            return []
        wanted = asked.get(b"access-control-request-headers") or b"authorization, content-type"
        more: RawHeaders = [
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        if asked.get(b"access-control-request-private-network") == b"true":  # a public page, a gateway at home
            more.append((b"access-control-allow-private-network", b"true"))
        return allowed + more


class Keys:
    """Bearer keys, compared in constant time: each with each, whatever matched before. `without`: what is checked
    instead where there are none."""

    def __init__(self, keys: Iterable[str], without: Callable[[Named], object] = lambda _: None) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._without = without

    def check(self, headers: Named) -> None:
        """Raises 401 where a key is needed and none of ours was sent."""
        if not self._keys:
            self._without(headers)
            return
        scheme, _, offered = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            offered = headers.get(b"x-api-key", b"")  # how Anthropic's clients send it
        offered = offered.strip()
        matches = [hmac.compare_digest(offered, key) for key in self._keys]  # all of them, whatever matched before
        if not any(matches):
            said = "Wrong API key." if offered else "No API key was sent."
            raise error("invalid_api_key", f"{said} Send one of the gateway's keys as 'Authorization: Bearer KEY'.")


class Edge:
    """The outermost application. `paths`: those that are fixed words, found by one look-up; everything else, the
    lifespan too, is the router's, which tries one pattern after the other (docs/data-path.md has the gain). `sink`
    takes an access line's members; None: no access log."""

    def __init__(
        self,
        paths: Mapping[str, App],
        router: App,
        *,
        cors: Cors,
        keys: Keys,
        metrics: Metrics,
        sink: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._paths = paths
        self._router = router
        self._cors = cors
        self._keys = keys
        self._metrics = metrics
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        client: ClientRequest = scope["illm.client"]
        call = self._call(scope, client.names, clock())
        scope["illm.call"] = call
        try:
            if scope["method"] == "OPTIONS":
                _no_content(client, call, self._cors.preflight(client.names))
                return
            if call.path not in OPEN_PATHS:
                self._keys.check(client.names)
            await self._paths.get(call.path, self._router)(scope, receive, send)
        except ApiError as exc:
            await Client(call, client).fail(exc)
        except ClientLeft:
            call.status = CLIENT_LEFT
        except asyncio.CancelledError:  # by the server, which closes: its client is still sending, or doesn't read
            if not call.started:
                await Client(call, client).fail(shutting_down())
        except Exception as bug:
            log.exception("request %s: a bug in the gateway", call.id.decode())
            await _tell(Client(call, client), _bug(bug, call))
        finally:
            self._record(call, clock())

    def _call(self, scope: Scope, names: Named, now: float) -> Call:
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/")
        peer = scope.get("client")
        client = peer[0] if peer else ""
        if client in LOOPBACK and b"x-forwarded-for" in names:  # the last of several is that proxy's own
            forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"][-1]
            client = forwarded.rpartition(b",")[2].strip().decode("latin-1")
        call = Call(
            id=request_id(names.get(b"x-request-id")),
            method=scope["method"],
            path=scope["path"],
            client=client,
            begun=now,
        )
        call.headers = [(b"x-request-id", call.id), *self._cors.headers(names.get(b"origin"))]
        return call

    def _record(self, call: Call, now: float) -> None:
        if call.endpoint:
            self._count(call, now)
        if call.code is not None:
            self._metrics.error(call.code)
        if self._sink is not None and (call.endpoint or call.code is not None or call.path not in PROBES):
            self._sink(call.line(now))

    def _count(self, call: Call, now: float) -> None:
        series = self._metrics.series(call.endpoint, call.model, call.backend)
        series.finished(call.status, now - call.begun)
        if call.first_byte is not None:
            series.first_byte(call.first_byte - call.begun)
        if call.usage is not None:
            series.tokens(call.usage.prompt, call.usage.completion)


async def _tell(client: Client, exc: ApiError) -> None:
    """A plain error, or the last event of a stream that has begun. What is neither is cut, which its client sees."""
    call = client.call
    if not call.started:
        await client.fail(exc)
    elif call.stream:
        call.failed(exc)
        client.write(error_events(cast(Endpoint, call.endpoint), exc))
        await client.finish()
    else:
        call.failed(exc)


def _no_content(client: ClientRequest, call: Call, headers: RawHeaders) -> None:
    call.status = 204
    client.begin(204, [(b"x-request-id", call.id), *headers])
    client.end()


def _bug(exc: Exception, call: Call) -> ApiError:
    return error(
        "internal_error",
        f"The gateway failed on this request ({type(exc).__name__}). Its log has the details under the request's id "
        f"{call.id.decode()}; please report it.",
    )
