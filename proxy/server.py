"""Serving: which port, what is printed at the start, and the drain at the end. The HTTP server itself is uvicorn.

On SIGTERM or SIGINT the listening socket closes, answers under way go on for `server.drain_timeout` seconds, which is
said, and streams that are still running then end with an error inside them; a second SIGINT ends them at once. On
SIGHUP changed settings are taken over.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import FrameType
from typing import Final, Protocol, cast

import uvicorn

from proxy.app import Gateway, create_app
from proxy.ask import asking
from proxy.client_connection import LOOK, ClientConnection
from proxy.client_head import Heads
from proxy.dialects.openai.paths import TITLES
from proxy.discovery import probe
from proxy.drain import DrainingServer, waits_for
from proxy.launched import Launch, Revive
from proxy.launcher_client import Address
from proxy.local import DEMO
from proxy.open_files import Watch
from proxy.pages import only_here
from proxy.pool import Backend
from proxy.registry import Registry
from proxy.settings import Settings, SettingsError
from proxy.sweep import Sweep

log = logging.getLogger("illm")

NEXT_PORTS: Final = 100  # how many are tried after the default one
GARBAGE: Final = 10_000  # objects between two looks of the collector; Python's own 700 cost a request some 5 %
IDLE_CLIENT: Final = 75  # seconds that a client's unused connection is kept


class ServeError(Exception):
    """The gateway can't start; the text is for people."""


class _Server(DrainingServer):
    """uvicorn, telling when it listens and what its end waits for, and with a say on SIGHUP where there is one."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], hangup: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._hangup = hangup

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._hangup is not None and hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hangup)
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        limit = self.config.timeout_graceful_shutdown
        if self.under_way and limit and not self._hurried:
            say(waits_for(self.under_way, limit, again=signal.SIGINT in self._captured_signals))
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The second Ctrl-C hurries, and does no more than that: uvicorn's own would leave clients without a word."""
        self._captured_signals.append(sig)
        if self.should_exit and sig == signal.SIGINT:
            self.hurry()
        self.should_exit = True


class Reloads(Protocol):
    """Who takes changed settings over."""

    @property
    def reload(self) -> Callable[[Settings], Awaitable[None]]: ...


class Knows(Protocol):
    """Who has a registry."""

    @property
    def registry(self) -> Registry: ...


class Reloading:
    """Reads the settings anew and has the gateway take them over. Settings that are wrong change nothing."""

    def __init__(self, gateway: Reloads, read: Callable[[], Settings]) -> None:
        self._gateway = gateway
        self._read = read
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def __call__(self) -> None:
        """Begin, or once more after the one that is under way: it may have read what has changed since."""
        if self._task is not None and not self._task.done():
            self._again = True
        else:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="reload")

    async def _run(self) -> None:
        while True:
            self._again = False
            try:
                await self._gateway.reload(await asyncio.to_thread(self._read))
            except SettingsError as exc:
                log.error("the settings are wrong, so nothing changes: %s", exc)
            except Exception:  # a bug must not end the server, nor what comes after
                log.exception("taking the settings over")
            if not self._again:
                return


def serve(
    settings: Settings,
    *,
    launchers: Sequence[Address] = (),
    reload: Callable[[], Settings] | None = None,
    revive: Revive | None = None,
    launch: Launch | None = None,
) -> None:
    """Serve until a signal ends it. Blocks. Raises `ServeError` where it can't begin. `launchers`: whose engines it
    serves; `reload` reads the settings anew at SIGHUP, in a thread, and may raise `SettingsError`; `revive` and
    `launch`: see `create_app`."""
    sock, notes = listen(settings)
    address = url_of(sock)
    gateway = create_app(settings, own_port=sock.getsockname()[1], launchers=launchers, revive=revive, launch=launch)
    config = configured(gateway, settings)

    def ready() -> None:
        settle()
        say("\n".join([*notes, *greeting(gateway, settings, address)]))

    server = _Server(config, ready, Reloading(gateway, reload) if reload is not None else None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        try:
            runner.run(server.serve(sockets=[sock]))
        except KeyboardInterrupt:
            return


def say(text: str) -> None:
    """To people, at once."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def configured(gateway: Gateway, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves a gateway."""
    return uvicorn.Config(
        gateway.app,
        loop="auto",  # uvloop where it is installed
        http=cast(type[asyncio.Protocol], partial(ClientConnection, heads=Heads(), sweep=Sweep(LOOK))),
        proxy_headers=False,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CLIENT,
        timeout_graceful_shutdown=math.ceil(settings.server.drain_timeout),
        callback_notify=Watch().look,
        timeout_notify=0,
    )


def settle() -> None:
    """After the start: what it made stays, and is never to be looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def listen(settings: Settings) -> tuple[socket.socket, list[str]]:
    """The listening socket, and what is to be said about its port. The default port gives way to the next free one;
    a port that somebody chose doesn't: the error names who answers there."""
    host, port = settings.server.host, settings.server.port
    try:
        return _bind(host, port), []
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise ServeError(f"Can't listen on {host}:{port}: {exc.strerror}. Choose another host or port.") from None
    there = asyncio.run(_who_answers(host, port))
    if "server.port" in settings.explicit:
        raise ServeError(
            f"Port {port} is taken: {there} answers there. Stop it, or choose another port (--port, ILLM_PORT)."
        )
    for other in range(port + 1, port + NEXT_PORTS):
        try:
            return _bind(host, other), [f"Port {port} is taken ({there}); using {other}."]
        except OSError:
            continue
    raise ServeError(f"No port from {port} to {port + NEXT_PORTS - 1} is free. Choose one with --port.")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY where it says so
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except BaseException:
        sock.close()
        raise
    return sock


async def _who_answers(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    root = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with asking() as asker:
        found = await probe(asker, root, None, None, 2.0)
    if found.gateway:
        return "another illm"
    return TITLES[found.kind] if found.kind is not None else "another program"


def url_of(sock: socket.socket) -> str:
    """Where a listening socket is reached from this machine."""
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def greeting(gateway: Knows, settings: Settings, address: str) -> list[str]:
    """The start-up text: where it listens, what it serves, and a `curl` that works now."""
    registry = gateway.registry
    lines = [f"illm is listening on {address}/v1"]
    if not (settings.server.api_keys or only_here(settings.server.host)):
        lines.append(
            f"Warning: on {settings.server.host} without keys, whoever reaches it may use it. Set server.api_keys "
            "(ILLM_API_KEYS)."
        )
    lines += [_row(backend) for backend in registry.backends.values()]
    for backend in registry.backends.values():
        if backend.engine is not None and _given_up(backend):
            lines += [backend.detail, f"Mend that, then `illm start {backend.engine.name}` tries again."]
    demo = registry.backends.get(DEMO)
    if demo is not None and demo.local:  # and not one of the settings that is called so
        lines += _demo_hint()
    return lines + _try_it(registry, settings, address)


def _try_it(registry: Registry, settings: Settings, address: str) -> list[str]:
    """Nothing where nothing can be served."""
    there = [n for n, route in registry.snapshot.names.items() if any(r.backend.servable for r in route.replicas)]
    if not there:
        return []
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.server.api_keys else ""
    model = settings.model if settings.model in there else there[0]
    return [
        "Try it:",
        f"  curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
    ]


def _row(backend: Backend) -> str:
    names = ", ".join(model.id for model in backend.models[:4]) + (", …" if len(backend.models) > 4 else "")
    kind = TITLES[backend.kind] if backend.kind is not None else "not recognised yet"
    detail = "see below" if _given_up(backend) else backend.detail
    what = names if backend.state == "ready" else f"{backend.state}: {detail}"
    there = backend.engine is None or backend.state == "ready"
    where = backend.settings.root if there or backend.engine is None else f"launcher '{backend.engine.launcher}'"
    return f"  {backend.name:<12} {kind:<28} {where:<28} {what}"


def _given_up(backend: Backend) -> bool:
    """Is it an engine that its launcher can't start? Why is too long for a table."""
    return backend.engine is not None and backend.engine.state == "fatal"


def _demo_hint() -> list[str]:
    return [
        "No engine was found on this machine, so the built-in demo engine answers: a stand-in, not a language model.",
        "A real engine on its usual port is found by itself; for one elsewhere, write to configs/illm.yaml:",
        "  backends:",
        "    mine:",
        "      base_url: http://127.0.0.1:8080",
    ]
