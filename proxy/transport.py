"""The connections to upstreams, and nothing else: which there are, which one carries a call, how long each is kept.

It knows neither dialects nor models nor clients. Time limits are watched by one sweep over all connections.

Cookies are neither kept nor sent. Redirects are not followed: they are answers like others.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from proxy.connection import ConnectFailed, Connection, Owner
from proxy.open_files import shortage

SWEEP: Final = 1.0  # seconds between two looks at the time limits
IDLE_CONNECTIONS: Final = 512  # kept for one origin; more are closed after use


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits, in seconds."""

    connect: float = 5.0
    response: float = 600.0  # until the head
    idle: float = 600.0  # between two pieces of a body
    keep: float = 4.0  # an unused connection; engines close theirs after 5 s


class Origin(NamedTuple):
    """Where a base URL leads: what a connection needs, and what every request to it begins with."""

    host: str
    port: int
    tls: bool
    authority: bytes
    path: str  # a prefix of the base URL, without a trailing slash

    @classmethod
    def parse(cls, root: str) -> Origin:
        """From a base URL without `/v1`. Raises `ValueError` for what is no http(s) URL."""
        url = urlsplit(root)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"not an http(s) URL: {root!r}")
        tls = url.scheme == "https"
        port = url.port or (443 if tls else 80)
        name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        authority = name if url.port is None else f"{name}:{url.port}"
        return cls(
            url.hostname, port, tls, authority.encode("idna" if not name.isascii() else "ascii"), url.path.rstrip("/")
        )


class Connections(Owner):
    """The connections to one origin."""

    def __init__(self, origin: Origin, limits: Limits, context: Callable[[], ssl.SSLContext]) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self.active: set[Connection] = set()
        self._limits = limits
        self._context = context
        self._idle: list[Connection] = []  # the most recently used last
        self._opening = 0  # connections that are being made

    def take(self) -> Connection | None:
        """A kept connection that is still open; never waits."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises `ConnectFailed`."""
        origin = self.origin
        where = f"{origin.host}:{origin.port}"
        self._opening += 1
        try:
            async with asyncio.timeout(self._limits.connect):
                connection = Connection(self)
                await self.loop.create_connection(
                    lambda: cast(asyncio.Protocol, connection),
                    *(origin.host, origin.port),
                    ssl=self._context() if origin.tls else None,
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection to {where} within {self._limits.connect:g} s") from None
        except ssl.SSLError as tls:
            raise ConnectFailed(f"TLS with {where} failed: {tls.reason or tls}", tls) from None
        except OSError as exc:
            raise ConnectFailed(f"{where}: {_plain(exc)}", exc) from None
        finally:
            self._opening -= 1
        return connection

    def keep(self, connection: Connection) -> None:
        if len(self._idle) < IDLE_CONNECTIONS:
            connection.touched = self.loop.time()
            self._idle.append(connection)
        else:
            connection.close()

    def discard(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what is idle for too long; end calls whose engine is silent for too long."""
        limits = self._limits
        for connection in [c for c in self._idle if now - c.touched > limits.keep]:
            connection.close()
        for connection in list(self.active):
            if connection.heard:
                connection.heard, connection.touched = False, now
            if connection.paused:  # silent because the client is slow: not the engine's fault
                continue
            limit = limits.idle if connection.head_seen else limits.response
            if now - connection.touched > limit:
                connection.expire(f"no {'further data' if connection.head_seen else 'answer'} within {limit:g} s")

    def close(self) -> None:
        for connection in [*self._idle, *self.active]:
            connection.close()

    @property
    def open(self) -> int:
        return len(self._idle) + len(self.active)

    @property
    def unused(self) -> bool:
        """Is there none, and will there be none soon?"""
        return not (self.open or self._opening)


class Transport:
    """All upstream connections of one gateway. Whoever makes it calls `close`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._origins: dict[Origin, Connections] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    def kept(self, origin: Origin) -> Connection | None:
        """A connection to it that is open and unused. Whoever takes it calls its `start` at once, owns it until the
        receiver heard `on_end` or `on_lost`, and closes it when giving up before."""
        connections = self._origins.get(origin)
        return connections.take() if connections is not None else None

    async def connect(self, origin: Origin) -> Connection:
        """A new one; as `kept`. Raises `ConnectFailed`."""
        connections = self._origins.get(origin)
        if connections is None:
            connections = self._origins[origin] = Connections(origin, self._limits, self._context)
            self._watch()
        return await connections.connect()

    def open_to(self, origin: Origin) -> int:
        """Connections open to it, used or not."""
        connections = self._origins.get(origin)
        return connections.open if connections is not None else 0

    def close(self) -> None:
        """Close every connection, those in use too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connections in self._origins.values():
            connections.close()
        self._origins.clear()

    def _watch(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for origin, connections in list(self._origins.items()):
            connections.sweep(loop.time())
            if connections.unused:  # an engine that was launched anew has another port
                del self._origins[origin]
        self._sweeper = loop.call_later(SWEEP, self._sweep)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _plain(exc: OSError) -> str:
    """An OSError in plain words; the event loop's own text repeats the address."""
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    return shortage(exc) or exc.strerror or str(exc) or type(exc).__name__
