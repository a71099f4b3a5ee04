"""The active side of health: ask every backend, again and again, what it is and how it is.

One task for each backend, so that a slow one delays nobody. What a probe means is `Backend.learn`'s business; here is
only when to ask. No request ever waits for this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from random import uniform
from typing import Final

from proxy.ask import Asker
from proxy.describe import describe_ollama
from proxy.discovery import probe
from proxy.pool import Backend
from proxy.registry import Registry

log = logging.getLogger("illm")

EAGER: Final = 1.0  # seconds between probes of a backend that isn't ready: it may be at any moment
SPREAD: Final = 1.1  # an interval is up to so many times as long: not all backends are asked in the same moment
EAGER_PROBES: Final = 60  # after that many it is asked at the ordinary interval


class HealthLoop:
    """Watches the registry's backends. Whoever makes it calls `close`."""

    def __init__(self, registry: Registry, asker: Asker) -> None:
        self._registry = registry
        self._asker = asker
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, asyncio.Event] = {}

    def start(self) -> None:
        """Watch all backends that there are."""
        for backend in self._registry.backends.values():
            self.watch(backend)

    def watch(self, backend: Backend, *, asked: bool = False) -> None:
        """Watch one more, in place of whatever had its name. `asked`: it was looked at just now."""
        self.forget(backend.name)
        self._asked[backend.name] = asyncio.Event()
        self._tasks[backend.name] = asyncio.create_task(self._watch(backend, asked), name=f"health {backend.name}")

    def forget(self, name: str) -> None:
        event = self._asked.pop(name, None)
        if event is not None:
            event.set()  # nobody waits for it any more
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def first_round(self, patience: float) -> None:
        """Until every backend was asked once, at most `patience` seconds."""
        asked = [event.wait() for event in self._asked.values()]
        if asked:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*asked), patience)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, backend: Backend, asked: bool) -> None:
        eager = 0
        while True:
            if not asked:
                await self.look(backend)
            asked = False
            self._asked[backend.name].set()
            eager = 0 if backend.state == "ready" else eager + 1
            hurry = 0 < eager < EAGER_PROBES and backend.kind != "tgi"  # TGI's health may run a test generation
            interval = self._registry.settings.health.interval
            await asyncio.sleep(min(EAGER, interval) if hurry else interval * uniform(1.0, SPREAD))

    async def look(self, backend: Backend) -> None:
        """One probe of one backend, and the registry made anew if it changed anything."""
        settings, health = backend.settings, self._registry.settings.health
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        known = backend.state == "ready" and not backend.failures  # else another engine may be there by now
        kind = settings.kind or (backend.kind if known else None)
        version = backend.version if known else None
        try:
            found = await probe(self._asker, settings.root, kind, key, health.timeout, version)
        except Exception:  # a bug must not end the watch: the backend would keep its last state for ever
            log.exception("probe of backend '%s'", backend.name)
            return
        if found.state == backend.state == "ready" and backend.kind == "ollama":  # a new one serves first
            models = await describe_ollama(self._asker, settings.root, key, found.models, backend.described)
            found = replace(found, models=models)
        before = backend.state
        if backend.learn(found, down_after=health.down_after, up_after=health.up_after):
            self._registry.rebuild()
            if backend.state != before:
                log.info("%s", _told(backend))
        else:
            self._registry.changed()  # its version or what it says may have


def _told(backend: Backend) -> str:
    if backend.state == "ready":
        names = ", ".join(model.id for model in backend.models[:5])
        more = f" and {len(backend.models) - 5} more" if len(backend.models) > 5 else ""
        return f"backend '{backend.name}' ({backend.kind}) is ready: {names or 'lists no models'}{more}"
    return f"backend '{backend.name}' is {backend.state}: {backend.detail}"
