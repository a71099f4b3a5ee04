"""What surrounds every request, in one pure-ASGI layer: who may come in, CORS, errors as OpenAI's envelope, one access
line and the metrics at the end. What a head says of that is `reading`'s.

One layer rather than five, and none of them wraps `send`: a streamed piece goes from the relay straight to the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from proxy.call import CLIENT_LEFT, Call, clock
from proxy.client_request import ClientRequest
from proxy.dialects.base import Endpoint
from proxy.endpoints import ClientLeft, Receive, Send
from proxy.errors import ApiError, error
from proxy.events import error_events
from proxy.headers import RawHeaders, new_id
from proxy.metrics import Metrics
from proxy.reading import Reader, Reading
from proxy.relay import Client, shutting_down

log = logging.getLogger("illm")

Scope = dict[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))  # a reverse proxy there is believed whom it forwards for
OPEN_PATHS: Final = frozenset(("/healthz", "/health", "/livez", "/readyz"))  # for probes that hold no key
PROBES: Final = OPEN_PATHS | {"/metrics"}  # asked every few seconds: a line only where something is wrong


class Edge:
    """The outermost application. `paths`: those that are fixed words, found by one look-up; everything else, the
    lifespan too, is the router's, which tries one pattern after the other (docs/data-path.md has the gain). `sink`
    takes what an access line is made of: a call and the time of its end; None: no access log."""

    def __init__(
        self,
        paths: Mapping[str, App],
        router: App,
        *,
        reader: Reader,
        metrics: Metrics,
        sink: Callable[[Call, float], None] | None,
    ) -> None:
        self._paths = paths
        self._router = router
        self._reader = reader
        self._metrics = metrics
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        client: ClientRequest = scope["illm.client"]
        reading = self._reader.read(client.head)
        call = _call(scope, client, reading)
        scope["illm.call"] = call
        try:
            if call.method == "OPTIONS":
                _no_content(client, call, self._reader.cors.preflight(client.names))
                return
            if not reading.admitted and call.path not in OPEN_PATHS:
                self._reader.keys.check(client.names)
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

    def _record(self, call: Call, now: float) -> None:
        if call.endpoint:
            self._count(call, now)
        if call.code is not None:
            self._metrics.error(call.code)
        if self._sink is not None and (call.endpoint or call.code is not None or call.path not in PROBES):
            self._sink(call, now)

    def _count(self, call: Call, now: float) -> None:
        series = self._metrics.series(call.endpoint, call.model, call.backend)
        series.finished(call.status, now - call.begun)
        if call.first_byte is not None:
            series.first_byte(call.first_byte - call.begun)
        if call.usage is not None:
            series.tokens(call.usage.prompt, call.usage.completion)


def _call(scope: Scope, client: ClientRequest, reading: Reading) -> Call:
    path = reading.path
    if scope["path"] != path:
        scope["path"] = path
    peer = scope["client"]
    who: str = peer[0] if peer else ""
    if reading.forwarded and who in LOOPBACK:
        who = reading.forwarded
    call = Call(reading.id or new_id(), client.head.method, path, who, clock())
    call.headers = [(b"x-request-id", call.id), *reading.cors]
    call.passing, call.circles = reading.passing, reading.circles
    return call


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
