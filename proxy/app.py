"""The composition root: settings in, an ASGI application out. The only place where the rooms are put together."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from starlette.routing import Route as Path
from starlette.routing import Router

from proxy import __version__
from proxy.access_log import AccessLog
from proxy.call import Call
from proxy.control import Control
from proxy.dialects.base import Endpoint
from proxy.dialects.table import DIALECTS
from proxy.endpoints import RELAYED, Answer, LaterAnswer, LocalEndpoint, RelayEndpoint, unknown_url
from proxy.forward import Forwarder
from proxy.images import ImageFetcher
from proxy.launched import Launch, Launched, Revive
from proxy.launcher_client import Address
from proxy.metrics import CONTENT_TYPE, Metrics
from proxy.middleware import Edge
from proxy.pages import Pages, only_here
from proxy.reading import Cors, Keys, Reader
from proxy.registry import Registry, Sharing
from proxy.relay import LOOKS
from proxy.reload import Reload
from proxy.settings import ServerSettings, Settings
from proxy.status import Status
from proxy.sweep import Sweep
from proxy.transport import Limits, Transport

FAREWELL: Final = 2.0  # seconds for the last bytes of streams that a shutdown cut
TICK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application, and what the command line shows of it. `reload` takes changed settings over while it serves."""

    app: Edge
    registry: Registry
    reload: Reload
    launched: Sequence[Launched]
    metrics: Metrics
    transport: Transport
    follow: Callable[[Address], object]  # serve one more launcher's engines


@dataclass(frozen=True, slots=True)
class Team:
    """What a gateway has from others where it is one of several that look like one. `via`: what they all call
    themselves; `totals`: the metrics of all; `log_turn`: held while a log line is written."""

    sharing: Sharing
    totals: Callable[[], Awaitable[bytes]]
    log_turn: AbstractContextManager[None]
    via: str
    started: float


def create_app(
    settings: Settings,
    *,
    own_port: int = 0,
    sink: Callable[[dict[str, Any]], None] | None = None,
    launchers: Sequence[Address] = (),
    revive: Revive | None = None,
    launch: Launch | None = None,
    team: Team | None = None,
) -> Gateway:
    """Build a gateway; nothing runs before the server starts its lifespan. `own_port` is not looked at for engines.
    `sink` takes access lines instead of standard output. `launchers`: whose engines it serves.
    `revive`: starts this machine's launcher again if it dies; `launch`: for the first time, at a reload. `team`: of a
    worker, which is told what others find."""
    control = Control(
        settings,
        own_port=own_port,
        launchers=launchers,
        revive=revive,
        launch=launch,
        sharing=team.sharing if team is not None else None,
        looks=team is None,
    )
    registry, launched = control.registry, control.launched
    started = team.started if team is not None else time.time()
    upstream = settings.upstream
    transport = Transport(
        Limits(upstream.connect_timeout, upstream.response_timeout, upstream.idle_timeout, upstream.idle_connection)
    )
    metrics = Metrics(version=__version__, started=started)
    images = ImageFetcher(settings.images)
    forwarder = Forwarder(registry, transport, DIALECTS, metrics, images, max_reply=upstream.max_reply)
    cors = Cors(settings.server.cors_origins)
    keys = Keys((key.get_secret_value() for key in settings.server.api_keys), _pages(settings.server, cors).check)
    status = Status(registry, metrics, transport, started=int(started), trusts=_trusts(keys))
    log = AccessLog(turn=team.log_turn if team is not None else None)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await control.start()
        try:
            yield
        finally:
            await _farewell(registry)
            await control.close()
            await images.aclose()
            transport.close()
            log.close()

    via = (team.via if team is not None else new_via()).encode()
    relayed = _relayed(settings.server, registry, forwarder)
    own: dict[str, Answer | LaterAnswer] = {**status.table()}
    if team is not None:
        own["/metrics"] = _totals(team.totals)
    paths = [Path(prefix + path, relayed[endpoint]) for path, endpoint in RELAYED.items() for prefix in ("/v1", "")]
    paths += [Path(path, LocalEndpoint(answer)) for path, answer in own.items()]
    router = Router(paths, redirect_slashes=False, default=unknown_url, lifespan=lifespan)
    access = None if not settings.server.access_log else log.write if sink is None else _lines(sink)
    fixed = {path.path: path.app for path in paths if "{" not in path.path}
    edge = Edge(fixed, router, reader=Reader(cors, keys, via), metrics=metrics, sink=access)
    reload = Reload(registry, control.health, launched, relayed.values(), control.begin_launcher)
    return Gateway(edge, registry, reload, launched, metrics, transport, control.follow)


def _relayed(server: ServerSettings, registry: Registry, forwarder: Forwarder) -> dict[Endpoint, RelayEndpoint]:
    pulse = Sweep(server.keep_alive_interval / LOOKS)

    def relay(endpoint: Endpoint) -> RelayEndpoint:
        return RelayEndpoint(endpoint, registry, forwarder, max_body=server.max_body, pulse=pulse)

    return {endpoint: relay(endpoint) for endpoint in RELAYED.values()}


def _lines(sink: Callable[[dict[str, Any]], None]) -> Callable[[Call, float], None]:
    def write(call: Call, now: float) -> None:
        sink(call.line(now))

    return write


def new_via() -> str:
    """What a gateway calls itself in the `via` header of what it sends on, so that it knows its own requests again."""
    return f"illm-{secrets.token_hex(8)}"


def _pages(server: ServerSettings, cors: Cors) -> Pages:
    names = (server.host, socket.gethostname(), *server.allowed_hosts)
    return Pages(cors.allows, names, here=only_here(server.host))


def _trusts(keys: Keys) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a request may see what needs a key."""

    def trusts(scope: Mapping[str, Any]) -> bool:
        return keys.admit(scope["illm.client"].names)

    return trusts


def _totals(totals: Callable[[], Awaitable[bytes]]) -> LaterAnswer:
    async def metrics(_: Any) -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE, await totals()

    return metrics


async def _farewell(registry: Registry) -> None:
    """Let the calls that the server has just cancelled say so to their clients."""
    for _ in range(int(FAREWELL / TICK)):
        if not any(backend.places.held for backend in (*registry.backends.values(), *registry.retired)):
            break
        await asyncio.sleep(TICK)
    await asyncio.sleep(TICK)  # the sockets' turn
