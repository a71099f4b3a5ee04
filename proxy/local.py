"""Zero configuration: the engines that already run on this machine, and the demo engine where there are none.

Looks at the usual local ports again and again; an engine that comes up later appears, one that is gone disappears.
The demo engine is a process of its own (`python -m launchers.demo`) that ends with this one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable
from typing import Final

from proxy.ask import Asker
from proxy.discovery import LOCAL_PORTS, probe
from proxy.engine_answers import Probe
from proxy.health import HealthLoop
from proxy.pool import Backend
from proxy.registry import Registry
from proxy.settings import BackendSettings

log = logging.getLogger("illm")

HOST: Final = "127.0.0.1"
LOOPBACK: Final = frozenset((HOST, "localhost", "::1"))
DEMO: Final = "demo"
DEMO_START: Final = 30.0  # seconds


class LocalDiscovery:
    """Finds local engines. Whoever makes it calls `close`."""

    def __init__(self, registry: Registry, health: HealthLoop, asker: Asker, *, own_port: int, demo: bool) -> None:
        self._registry = registry
        self._health = health
        self._asker = asker
        self._own_port = own_port
        self._demo = DemoEngine() if demo else None
        self._task: asyncio.Task[None] | None = None

    async def first_round(self) -> None:
        """Look once; start the demo engine if nothing was found."""
        await self._look()
        if self._demo is not None and not self._registry.backends:
            address = await self._demo.start()
            if address is not None:  # asked at once: requests may come before it is for the first time
                timeout = self._registry.settings.health.timeout
                self._add(DEMO, address, await probe(self._asker, address, "openai", None, timeout))

    def start(self) -> None:
        """Keep looking."""
        self._task = asyncio.create_task(self._run(), name="local discovery")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._demo is not None:
            await self._demo.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._registry.settings.discovery.interval)
            try:
                await self._look()
                await self._drop()
            except Exception:  # a bug must not end the looking
                log.exception("looking for local engines")

    async def _look(self) -> None:
        origins = [backend.origin for backend in self._registry.backends.values()]
        known = {origin.port for origin in origins if origin.host in LOOPBACK}
        new = [f"http://{HOST}:{port}" for port in LOCAL_PORTS if port != self._own_port and port not in known]
        timeout = self._registry.settings.health.timeout
        found = await asyncio.gather(*(probe(self._asker, root, None, None, timeout) for root in new))
        for root, one in zip(new, found, strict=True):
            if one.state != "down" and one.kind is not None and not one.gateway:
                self._add(_name(one.kind, root, self._registry.backends), root, one)

    async def _drop(self) -> None:
        """Forget what is gone; the demo engine goes when a real one is there."""
        real = [b for b in self._registry.backends.values() if b.name != DEMO and b.state == "ready"]
        for backend in [b for b in self._registry.backends.values() if b.local]:
            gone = backend.state == "down" and backend.name != DEMO
            if gone or (backend.name == DEMO and real and not backend.in_flight):
                self._health.forget(backend.name)
                self._registry.remove(backend.name)
                log.info("local engine '%s' is %s", backend.name, "gone" if gone else "no longer needed")
        if self._demo is not None and DEMO not in self._registry.backends:
            await self._demo.stop()

    def _add(self, name: str, root: str, found: Probe) -> None:
        backend = Backend(name, BackendSettings(base_url=root), local=True)
        backend.learn(found, down_after=1)
        self._registry.add(backend)
        self._health.watch(backend)


class DemoEngine:
    """The demo engine's process. It ends when its standard input closes, so not even a kill of this one leaks it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str | None:
        """Its base URL; None, with a line in the log, where it can't be started."""
        command = (sys.executable, "-m", "launchers.demo", "--host", HOST, "--port", "0", "--exit-with-parent")
        pipe = asyncio.subprocess.PIPE
        # Out of the terminal's group: its Ctrl-C is for the gateway, whose end is the end of that input.
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(DEMO_START):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        _, _, address = line.strip().partition("listening on ")
        if not address:
            log.warning("the demo engine could not be started")
            await self.stop()
            return None
        return address

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(2.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _name(kind: str, root: str, taken: Iterable[str]) -> str:
    """The kind, with the port where there are two."""
    return kind if kind not in taken else f"{kind}-{root.rpartition(':')[2]}"
