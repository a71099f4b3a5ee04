"""The composition root: settings in, an ASGI application out. The only place where the rooms are put together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from starlette.routing import Route as Path
from starlette.routing import Router

from proxy import __version__
from proxy.access_log import AccessLog
from proxy.dialects.table import DIALECTS
from proxy.discovery import new_client
from proxy.endpoints import RELAYED, LocalEndpoint, RelayEndpoint, Shortcut, unknown_url
from proxy.forward import Forwarder
from proxy.health import HealthLoop
from proxy.images import ImageFetcher
from proxy.launched import Launched, Revive
from proxy.launcher_client import Address
from proxy.local import LocalDiscovery
from proxy.metrics import Metrics
from proxy.middleware import Cors, Edge, Keys
from proxy.registry import Registry
from proxy.reload import Reload
from proxy.settings import Settings
from proxy.settings_names import LOCAL
from proxy.status import Status
from proxy.transport import Limits, Transport

FIRST_ROUND: Final = 0.6  # seconds that the start waits for the first findings; later ones arrive while serving
FAREWELL: Final = 2.0  # seconds for the last bytes of streams that a shutdown cut
TICK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application, and what the command line shows of it. `reload` takes changed settings over while it serves."""

    app: Edge
    registry: Registry
    reload: Callable[[Settings], Awaitable[None]]


def create_app(
    settings: Settings,
    *,
    own_port: int = 0,
    sink: Callable[[dict[str, Any]], None] | None = None,
    launchers: Sequence[Address] = (),
    revive: Revive | None = None,
) -> Gateway:
    """Build a gateway; nothing runs before the server starts its lifespan. `own_port` is not looked at for engines.
    `sink` takes access lines instead of standard output. `launchers`: whose engines it serves.
    `revive`: starts this machine's launcher again if it dies."""
    registry = Registry(settings)
    upstream = settings.upstream
    transport = Transport(
        Limits(upstream.connect_timeout, upstream.response_timeout, upstream.idle_timeout, upstream.idle_connection)
    )
    metrics = Metrics(version=__version__, started=time.time())
    client = new_client()
    images = ImageFetcher(client, settings.images)
    forwarder = Forwarder(registry, transport, DIALECTS, metrics, images, max_reply=upstream.max_reply)
    status = Status(registry, metrics, transport, started=int(time.time()))
    log = AccessLog()
    health = HealthLoop(registry, client)
    launched = [Launched(address, registry, health, revive if address.name == LOCAL else None) for address in launchers]
    local = settings.discovery.local if settings.discovery.local is not None else not (settings.backends or launchers)
    finder = LocalDiscovery(registry, health, client, own_port=own_port, demo=settings.demo) if local else None

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with client:
            for one in launched:
                one.start()
            health.start()
            await asyncio.gather(*(one.first_round(FIRST_ROUND) for one in launched))
            if finder is not None:
                await finder.first_round()
                finder.start()
            await health.first_round(FIRST_ROUND)
            try:
                yield
            finally:
                await _farewell(registry)
                if finder is not None:
                    await finder.close()
                for one in launched:
                    await one.close()
                await health.close()
                transport.close()
                log.close()

    via = f"illm-{secrets.token_hex(8)}".encode()
    relayed = {
        endpoint: RelayEndpoint(endpoint, registry, forwarder, max_body=settings.server.max_body,
                                keep_alive=settings.server.keep_alive_interval, via=via)
        for endpoint in RELAYED.values()
    }  # fmt: skip
    paths = [Path(prefix + path, relayed[endpoint]) for path, endpoint in RELAYED.items() for prefix in ("/v1", "")]
    paths += [Path(path, LocalEndpoint(answer)) for path, answer in status.table().items()]
    router = Router(paths, redirect_slashes=False, default=unknown_url, lifespan=lifespan)
    keys = (key.get_secret_value() for key in settings.server.api_keys)
    access = None if not settings.server.access_log else sink or log.write
    known = Shortcut({path.path: path.app for path in paths if "{" not in path.path}, router)
    edge = Edge(known, cors=Cors(settings.server.cors_origins), keys=Keys(keys), metrics=metrics, sink=access)
    return Gateway(edge, registry, Reload(registry, health, launched, relayed.values()))


async def _farewell(registry: Registry) -> None:
    """Let the calls that the server has just cancelled say so to their clients."""
    for _ in range(int(FAREWELL / TICK)):
        if not any(backend.in_flight for backend in (*registry.backends.values(), *registry.retired)):
            break
        await asyncio.sleep(TICK)
    await asyncio.sleep(TICK)  # the sockets' turn
